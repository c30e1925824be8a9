"""Processes that run ``train.py``, forked from one that has its imports, which take seconds of a CPU each."""

from __future__ import annotations

import os
import runpy
import sys
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])


def available_cpus() -> int:
    """Return the number of CPUs that this process may use: fewer than the machine has where a scheduler binds it."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def start(script: Path, arguments: list[str], log: Path, threads: int) -> BaseProcess:
    """Run a script with arguments in a process of its own, as ``python SCRIPT ARGUMENTS`` does.

    Args:
        script: ``train.py``.
        arguments: of its command line.
        log: file of its output and errors.
        threads: of PyTorch.

    Returns:
        The running process; ``join`` it, then read ``exitcode``.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["train", "sklearn.datasets"])  # the latter for the digits
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if ROOT not in path:  # the server imports train.py from there
        os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, path)])
    process = context.Process(target=_run, args=(str(script), arguments, str(log), threads))
    process.start()
    return process


def _run(script: str, arguments: list[str], log: str, threads: int) -> None:
    import torch  # which the server has

    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of processes that it starts
    torch.set_num_threads(threads)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
