"""Attacks of the benchmark ``attacks`` and their network, trained against FGSM on the embedded digits.

Their unit is as many plain passes (forward, and backward to the input). Other libraries: ``peers.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules import Digits
from robust.attacks import FGSM, PGD
from robust.threat_models import L1Ball, L2Ball, LinfBall, ThreatModel

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
