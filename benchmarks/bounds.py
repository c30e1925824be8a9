"""Time of one training step (forward and backward to weights and budgets) of each bound, over a plain step.

    uv run benchmarks/bounds.py [--threads N] [--rounds N] [--device cuda]

One run measures all steps in turn, on the same network and batch; times are medians over the rounds. Networks are
untrained, images and budgets (up to 0.1) random. Cells: ratio to the plain step.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the checkout's own packages are measured

from callbacks.results import git_commit, installed_versions
from robust.bounds import FeedForwardVerifier, LirpaVerifier, Verifier
from robust.bounds.verifier import TrainingPrecision
from robust.networks import DMLarge, DMSmall
from robust.threat_models import PixelBox

Step = Callable[[], Tensor]


def steps(network: nn.Module, x: Tensor, y: Tensor, budgets: Tensor) -> dict[str, Step]:
    """The losses to measure, by name."""

    def fused(verifier: Verifier, crown_weight: float) -> Step:
        return lambda: verifier.cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight).mean()

    def unfused(verifier: Verifier) -> Step:
        def loss() -> Tensor:
            margins = verifier.margins(network, PixelBox(budgets).interval(x), y)
            return F.pad(-margins, (1, 0)).logsumexp(1).mean()

        return loss

    own, lirpa = FeedForwardVerifier("crown-ibp"), LirpaVerifier(method="crown-ibp")
    tf32, bf16 = (FeedForwardVerifier(training_precision=each) for each in get_args(TrainingPrecision)[1:])
    in_tf32 = {"own IBP, TF32": fused(tf32, 0.0), "own CROWN-IBP, fused, TF32": fused(tf32, 0.5)}
    return {
        "plain": lambda: F.cross_entropy(network(x), y),
        "own IBP": fused(own, 0.0),
        "own IBP, bf16": fused(bf16, 0.0),
        "own CROWN-IBP, fused": fused(own, 0.5),
        "own CROWN-IBP, fused, bf16": fused(bf16, 0.5),
        **(in_tf32 if x.is_cuda else {}),
        "own CROWN-IBP, unfused": unfused(own),
        "auto_LiRPA IBP": fused(lirpa, 0.0),
        "auto_LiRPA CROWN-IBP, fused": fused(lirpa, 0.5),
        "auto_LiRPA CROWN-IBP, unfused": unfused(lirpa),
    }


def measure(measured: dict[str, Step], network: nn.Module, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each step, measured in turn; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds + 1):
        for name, step in measured.items():
            network.zero_grad()
            start = time.perf_counter()
            step().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cases = {"DM-small, batch 256": (DMSmall(), 256), "DM-large, batch 16": (DMLarge(), 16)}
    columns = {}
    for name, (network, batch) in cases.items():
        network.to(args.device)
        x, y = torch.rand(batch, 1, 28, 28, device=args.device), torch.randint(10, (batch,), device=args.device)
        budgets = (0.1 * torch.rand_like(x)).requires_grad_()
        columns[name] = measure(steps(network, x, y, budgets), network, args.rounds, args.device)
    print(f"| step | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for step in next(iter(columns.values())):
        ratios = " | ".join(f"{times[step] / times['plain']:.1f}" for times in columns.values())
        print(f"| {step} | {ratios} |")
    plain = ", ".join(f"{name} {times['plain'] * 1e3:.1f} ms" for name, times in columns.items())
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.processor()} x {args.threads}"
    print(f"\nPlain step: {plain}. {hardware} threads, commit {git_commit()}, {installed_versions()}")


if __name__ == "__main__":
    main()
