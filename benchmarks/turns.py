"""Ratios of times that take turns in one process, which other load on the machine hardly changes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Case = Callable[[], object]


def ratios(cases: dict[str, Case], rounds: int) -> dict[str, float]:
    """Median over the rounds of each case's time over the first case's in the same round; the first does not count.

    On CPU, time is the process's own over all its threads.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, case in cases.items():
            times[name].append(seconds(case))
    unit = next(iter(times.values()))
    return {
        name: statistics.median(t / u for t, u in zip(each[1:], unit[1:], strict=True)) for name, each in times.items()
    }


def seconds(case: Case) -> float:
    """Time of one call."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    case()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start
