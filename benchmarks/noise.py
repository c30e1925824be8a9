"""Time of a training step of ResNet-20 on 3x32x32 images, plain and with each kind of noise, in one run.

    python benchmarks/noise.py [--threads 1] [--rounds 10] [--batch 128] [--device cpu]

A step is forward, backward and SGD. On CPU, time is the process's own over all its threads, which other load on the
machine hardly changes. The networks take turns; the ratio is the median over rounds of a network's time over the plain
network's in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from callbacks.results import cpu_name, git_commit, installed_versions
from robust.networks import BayesianWeights, Noisy, NoisyWeights, ResNetV1

NOISY_LAYERS, SHAPE = ["bn1", "*.addition"], (3, 32, 32)


def networks(device: str) -> dict[str, nn.Module]:
    """The networks, by their names in the table."""
    kinds = {
        "plain": ResNetV1(),
        "Learn2Perturb, noise for each example": Noisy(ResNetV1(), NOISY_LAYERS, SHAPE),
        "Learn2Perturb, shared noise": Noisy(ResNetV1(), NOISY_LAYERS, SHAPE, shared_noise=True),
        "PNI, layer": NoisyWeights(ResNetV1()),
        "Adv-BNN": BayesianWeights(ResNetV1()),
    }
    return {name: network.to(device) for name, network in kinds.items()}


def seconds(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    clock = time.perf_counter if x.is_cuda else time.process_time
    start = clock()
    optimizer.zero_grad()
    F.cross_entropy(network(x), y).backward()
    optimizer.step()
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x, y = torch.rand(args.batch, *SHAPE, device=args.device), torch.randint(10, (args.batch,), device=args.device)
    kinds = networks(args.device)
    optimizers = {name: torch.optim.SGD(kinds[name].parameters(), lr=1e-3, momentum=0.9) for name in kinds}
    rounds = [{name: seconds(kinds[name], optimizers[name], x, y) for name in kinds} for _ in range(args.rounds + 1)]
    print("| network | step (s) | over plain |\n| --- | --- | --- |")
    for name in kinds:
        own = [times[name] for times in rounds[1:]]  # the first round allocates memory
        ratio = statistics.median(times[name] / times["plain"] for times in rounds[1:])
        print(f"| {name} | {statistics.median(own):.3g} | {ratio:.2f} |")
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu_name()} x {args.threads} threads"
    print(
        f"\nResNet-20, batch {args.batch}, {args.rounds} rounds. {hardware}, commit {git_commit()}, "
        f"{installed_versions()}"
    )


if __name__ == "__main__":
    main()
