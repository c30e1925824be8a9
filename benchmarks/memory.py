"""Most memory that a step holds at a time."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.turns import Case


def peak(case: Case, device: str = "cpu") -> float:
    """Bytes of tensors that a call holds at a time beyond those before it, at most."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        case()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    changes.sort(key=lambda event: event["ts"])
    held = highest = 0
    for change in changes:
        held += change["args"]["Bytes"]
        highest = max(highest, held)
    return highest


def ratios(cases: dict[str, Case], device: str = "cpu") -> dict[str, float]:
    """Most memory of each case over that of the first, in a second call each: the first may fill caches."""
    most = {}
    for name, case in cases.items():
        case()
        most[name] = peak(case, device)
    return {name: each / next(iter(most.values())) for name, each in most.items()}
