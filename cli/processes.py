"""Processes that run ``train.py``, forked from a server that has done its imports, which take seconds of CPU time."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock

ROOT = str(Path(__file__).resolve().parents[1])


def threads_of_each(processes: int) -> int:
    """Return the number of threads of each of several processes that run at the same time.

    They divide the CPUs that this process may use: a scheduler may bind it to some of the machine's. An
    ``OMP_NUM_THREADS`` that is set is the most: other work may be on the same CPUs, where threads wait for each other.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(cpus // processes, int(given) if given.isdecimal() else cpus), 1)


def signal_name(number: int) -> str:
    """Name of a signal, such as SIGKILL, or its number where it has none.

    >>> signal_name(9), signal_name(40)
    ('SIGKILL', 'signal 40')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end_with_parent() -> None:
    """End this process by SIGTERM, at which a training writes a checkpoint, when the process that started it has ended.

    A runner that is killed ends none of its processes; they would write into folders that the next runner uses.
    """
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def start(script: Path, arguments: list[str], log: Path, threads: int, lock: Path) -> BaseProcess:
    """Run a script with arguments in a process of its own, as ``python SCRIPT ARGUMENTS`` does.

    It ends with this process.

    Args:
        script: ``train.py``.
        arguments: arguments of the script.
        log: file for its output and errors.
        threads: number of PyTorch's threads.
        lock: file that the process locks until its end.

    Returns:
        The running process, for :func:`wait_for`.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["cli.server_start", "train", "sklearn.datasets"])  # sklearn has the digits
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if ROOT not in path:  # from which the server imports train.py
        os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, path)])
    process = context.Process(target=_run, args=(str(script), arguments, str(log), threads, str(lock)))
    with _one_thread:
        process.start()
    return process


# multiprocessing reads an exit status from a pipe, also that of others when one starts; of two threads that
# read it at the same time, one finds the pipe empty and takes the status for 255
_one_thread = threading.Lock()


def wait_for(process: BaseProcess) -> int:
    """Wait for the end of a process, and return its exit status. Several threads may wait and start processes."""
    wait([process.sentinel])
    with _one_thread:
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def _run(script: str, arguments: list[str], log: str, threads: int, lock: str) -> None:
    import torch  # the server has imported it

    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    end_with_parent()
    held = FileLock(lock)
    held.acquire()
    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes that the script starts
    torch.set_num_threads(threads)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
