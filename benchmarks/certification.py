"""Time of certifying images over that of a plain forward pass: verdicts alone, all margins, and auto_LiRPA's.

Two DM-small: one trained for a few epochs by interval bounds on the embedded digits, and their test images; the zoo's
on MNIST in the budgets that its generator gives, and the first 1,000 test images.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.attacks import digits
from benchmarks.turns import Case, ratios
from datamodules import MNIST
from robust import zoo
from robust.bounds import FeedForwardVerifier, LirpaVerifier, certify
from robust.budgets import LearnedBudgets
from robust.networks import DMSmall
from robust.threat_models import LinfBall, ThreatModel

EPSILON = 0.05


def train(network: nn.Module, epochs: int = 12) -> None:
    """A few epochs by interval bounds of a growing ball (Gowal et al. 2018)."""
    x, y = digits("train", next(network.parameters()).device.type)
    optimizer, verifier = torch.optim.Adam(network.parameters(), lr=1e-3), FeedForwardVerifier()
    for epoch in range(epochs):
        ball = LinfBall(EPSILON * min(1.0, epoch / (epochs / 2)))
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            bound = verifier.cross_entropy(network, ball.interval(x[batch]), y[batch], 0.0).mean()
            (0.5 * bound + 0.5 * F.cross_entropy(network(x[batch]), y[batch])).backward()
            optimizer.step()
    network.eval()


def cases(network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor, peers: bool = True) -> dict[str, Case]:
    """What is measured, by its name in the table; the first one is the unit."""
    own, lirpa = FeedForwardVerifier("tightest"), LirpaVerifier(method="crown-ibp")
    safe = partial(certify, own, network, threat_model, x, y)

    def forward() -> None:
        with torch.no_grad():
            network(x)

    def margins(verifier: FeedForwardVerifier | LirpaVerifier) -> Case:
        def run() -> None:
            with torch.no_grad():
                verifier.margins(network, threat_model.interval(x), y)

        return run

    measured: dict[str, Case] = {
        "plain pass": forward,
        "own margins, intervals": margins(FeedForwardVerifier("ibp")),
        "own verdicts, tightest": partial(safe, margins=False),
        "own verdicts, tightest, as computed": partial(safe, margins=False, rounding_safe=False),
        "own verdicts and all margins, tightest": safe,
        "own margins, tightest": margins(own),
        "own margins, CROWN-IBP": margins(FeedForwardVerifier("crown-ibp")),
    }
    return measured | ({"auto_LiRPA margins, CROWN-IBP": margins(lirpa)} if peers else {})


def measure_digits(rounds: int, peers: bool = True, device: str = "cpu") -> dict[str, float]:
    """Ratios to a plain pass, with budgets that are all alike."""
    torch.manual_seed(0)
    network = DMSmall((1, 28, 28)).to(device)
    train(network)
    return ratios(cases(network, LinfBall(EPSILON), *digits("test", device), peers=peers), rounds)


def measure_mnist(rounds: int, device: str = "cpu") -> dict[str, float]:
    """Ratios to a plain pass, with learned budgets."""
    name, data = "mnist_contextual_budgets", MNIST()
    data.prepare_data()
    data.setup("test")
    x, y = (part.to(device) for part in data.images("test")[torch.arange(1000)])
    budgets = LearnedBudgets(zoo.load_part(name, "generator").to(device))(x, 0.4)
    return ratios(cases(zoo.load(name).to(device).eval(), budgets, x, y), rounds)
