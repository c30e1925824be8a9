"""How a process keeps memory."""

from __future__ import annotations

import ctypes
import os
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameters of mallopt, in glibc's malloc.h
_LARGEST = 2**31 - 1  # bytes
_GIVEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for the next ones, with glibc; whether it now does.

    By default each tensor of more than 128 KiB to 32 MiB is returned to the system, which clears its pages when they
    are used again: a third of the time of an ascent step on a small network (docs/performance.md). Memory stays at its
    peak until the process ends. Does nothing where the environment sets glibc's thresholds, or on other systems.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _GIVEN):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # not glibc
        return False
    return bool(library.mallopt(_MMAP_THRESHOLD, _LARGEST) and library.mallopt(_TRIM_THRESHOLD, _LARGEST))
