"""Processes that run command lines together, reused from run to run, since their start takes longer than a run."""

import atexit
import os
import socket
import sys
import traceback
from multiprocessing import connection, get_context
from pathlib import Path

TIMEOUT = 300  # seconds
ROOT = str(Path(__file__).parents[1])


def forkserver():
    """A context that forks processes from one that has imported the command line, which takes seconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["train"])
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if ROOT not in path:  # the server finds train.py there, in any working folder
        os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, path)])
    return context


class Processes:
    """A number of processes (gloo, CPU), started like torchrun's."""

    def __init__(self, count):
        context = forkserver()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(count):
            pipe, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, count, port, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the pipe ends with the process
            self.pipes.append(pipe)
            self.processes.append(process)

    def run(self, arguments):
        """Run the command line in all of them.

        Raises:
            RuntimeError: with the first error; also if a process ends or takes longer than 300 seconds.
        """
        for pipe in self.pipes:
            pipe.send(arguments)
        waiting = {pipe: rank for rank, pipe in enumerate(self.pipes)}
        while waiting:
            answered = connection.wait(waiting, TIMEOUT)  # raise the first error
            if not answered:
                raise RuntimeError(f"no end after {TIMEOUT} seconds of processes {list(waiting.values())}")
            for pipe in answered:
                try:
                    error = pipe.recv()
                except EOFError:
                    error = "the process ended"
                if error is not None:
                    raise RuntimeError(f"process {waiting[pipe]}: {error}")
                del waiting[pipe]

    def stop(self):
        for process in self.processes:
            process.kill()


_running = {}  # by their number


def run_together(arguments, count=2):
    """Run the command line in processes, which an error restarts."""
    if count not in _running:
        _running[count] = Processes(count)
        atexit.register(_running[count].stop)
    try:
        _running[count].run(arguments)
    except Exception:
        _running.pop(count).stop()
        raise


def serve(rank, count, port, pipe):
    """Run the command lines of the pipe, and answer each with None or its error."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ["TORCHELASTIC_RUN_ID"] = "tests"
    import torch

    import train

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # as in conftest.py
    sys.argv = ["train.py"]
    while True:
        try:
            train.main(pipe.recv())
        except EOFError:
            return
        except BaseException:
            pipe.send(traceback.format_exc())
            return
        pipe.send(None)
