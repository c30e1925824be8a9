"""Time of k steps of PGD over k plain passes (forward, and backward to the input), and accuracy under the attack.

    uv run benchmarks/attacks.py [--threads N] [--rounds N] [--steps N] [--device cuda]

One run measures all attacks in turn, on the same test images and the same network, which a few epochs of training
against FGSM on the embedded digits give. Times are medians and accuracies means over the rounds, each with its own
seed. Other libraries: ``peers.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the checkout's own packages are measured

from callbacks.results import cpu_name, git_commit, installed_versions
from datamodules import Digits
from robust.attacks import FGSM, PGD
from robust.networks import DMSmall
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox, ThreatModel

Attack = Callable[[Tensor, Tensor], Tensor]
BALLS = {"linf": LinfBall(0.15), "l2": L2Ball(1.5), "l1": L1Ball(10.0)}


def digits(split: str, device: str) -> tuple[Tensor, Tensor]:
    dataset = Digits().load(split)
    return (dataset.images.float() / 255).to(device), dataset.labels.to(device)


def train(network: nn.Module, device: str, epochs: int = 5) -> None:
    """A few epochs of fast adversarial training (Wong et al. 2020)."""
    x, y = digits("train", device)
    attack, optimizer = FGSM(1.25, random_start=True), torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), device=device).split(64):
            optimizer.zero_grad()
            x_adv = attack(network, LinfBall(0.1), x[batch], y[batch])
            F.cross_entropy(network(x_adv), y[batch]).backward()
            optimizer.step()
    network.eval()


def plain(network: nn.Module, steps: int) -> Attack:
    """Only ``steps`` forward passes and backward passes to the input."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        for _ in range(steps):
            torch.autograd.grad(F.cross_entropy(network(x), y, reduction="sum"), x)
        return x.detach()

    return run


def ours(network: nn.Module, steps: int, threat_model: ThreatModel, early_stop: bool = False) -> Attack:
    attack = PGD(steps, early_stop=early_stop)
    return lambda x, y: attack(network, threat_model, x, y)


def measure(
    attacks: dict[tuple[str, str], Attack], network: nn.Module, x: Tensor, y: Tensor, rounds: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Median seconds and mean accuracy in percent under each attack; the first round's time does not count."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in attacks}
    accuracies: dict[tuple[str, str], list[float]] = {name: [] for name in attacks}
    for seed in range(rounds + 1):
        for name, attack in attacks.items():
            torch.manual_seed(seed)
            start = time.perf_counter()
            x_adv = attack(x, y)
            if x.is_cuda:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
            with torch.no_grad():
                accuracies[name].append(100 * (network(x_adv).argmax(1) == y).float().mean().item())
    return {name: (statistics.median(times[name][1:]), statistics.mean(accuracies[name])) for name in attacks}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = DMSmall((1, 28, 28)).to(args.device)
    train(network, args.device)
    x, y = digits("test", args.device)
    box = PixelBox(0.3 * torch.rand_like(x))
    attacks = {("none", "plain passes"): plain(network, args.steps)}
    for name, ball in {**BALLS, "per-pixel budgets": box}.items():
        attacks[name, "ours"] = ours(network, args.steps, ball)
        attacks[name, "ours, early stop"] = ours(network, args.steps, ball, early_stop=True)
    results = measure(attacks, network, x, y, args.rounds)
    seconds = results["none", "plain passes"][0]
    print("| threat model | implementation | time over plain passes | accuracy |\n| --- | --- | --- | --- |")
    for name, implementation in sorted(results, key=lambda key: [*BALLS, "none", "per-pixel budgets"].index(key[0])):
        spent, accuracy = results[name, implementation]
        print(f"| {name} | {implementation} | {spent / seconds:.2f} | {accuracy:.1f} |")
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu_name()} x {args.threads}"
    print(
        f"\nDM-small, {len(x)} test digits, {args.steps} steps of 2.5 / {args.steps} radius, {args.rounds} rounds, "
        f"radii {', '.join(f'{name} {ball.epsilon:g}' for name, ball in BALLS.items())}; plain passes {seconds:.2f} s. "
        f"{hardware} threads, commit {git_commit()}, {installed_versions()}"
    )


if __name__ == "__main__":
    main()
