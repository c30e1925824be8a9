"""Ratios of times that take turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Case = Callable[[], object]


def ratios(cases: dict[str, Case], rounds: int) -> dict[str, float]:
    """Least time of each case in all rounds but the first over that of the first case.

    On CPU, time is the process's own over all its threads, of which other load on the machine can only make more.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, case in cases.items():
            times[name].append(seconds(case))
    least = {name: min(each[1:]) for name, each in times.items()}
    return {name: each / next(iter(least.values())) for name, each in least.items()}


def seconds(case: Case) -> float:
    """Time of one call."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    case()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start
