"""Where the time of a step goes, by kinds of operations."""

from __future__ import annotations

import time

from torch.profiler import ProfilerActivity, profile

from benchmarks.turns import Case

KINDS = {
    "convolutions": ("conv",),
    "products of matrices": ("mm", "linear", "einsum"),
    "im2col, col2im": ("im2col", "col2im"),
    "copies": ("copy_", "clone"),
}
ELEMENTWISE, REST = "elementwise, sums", "Python, autograd"


def of_step(case: Case, rounds: int) -> dict[str, float]:
    """Seconds of a call in each kind of operations, as a profiler sees it: the round with the least time of several."""
    case()
    return min((_profiled(case) for _ in range(rounds)), key=lambda kinds: sum(kinds.values()))


def _profiled(case: Case) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        start = time.process_time()
        case()
        total = time.process_time() - start
    seconds = dict.fromkeys([*KINDS, ELEMENTWISE], 0.0)
    for event in recorded.key_averages():
        name = event.key.removeprefix("aten::")
        if name != event.key:
            seconds[_kind(name)] += event.self_cpu_time_total / 1e6
    return seconds | {REST: total - sum(seconds.values())}


def _kind(operation: str) -> str:
    """The kind of an operation of PyTorch.

    >>> [_kind(name) for name in ("mkldnn_convolution", "addmm", "threshold_backward", "im2col", "copy_")]
    ['convolutions', 'products of matrices', 'elementwise, sums', 'im2col, col2im', 'copies']
    """
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), ELEMENTWISE)
