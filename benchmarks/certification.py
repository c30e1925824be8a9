"""Time of certifying images over that of a plain forward pass: verdicts alone, all margins, and auto_LiRPA's.

The network is DM-small, trained for a few epochs by interval bounds on the embedded digits; its test images take turns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.attacks import digits
from benchmarks.turns import Case, ratios
from robust.bounds import FeedForwardVerifier, LirpaVerifier, certify
from robust.networks import DMSmall
from robust.threat_models import LinfBall

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


def cases(network: nn.Module, x: Tensor, y: Tensor, peers: bool = True) -> dict[str, Case]:
    """What is measured, by its name in the table; the first one is the unit."""
    ball, own, lirpa = LinfBall(EPSILON), FeedForwardVerifier("tightest"), LirpaVerifier(method="crown-ibp")

    def forward() -> None:
        with torch.no_grad():
            network(x)

    def margins(verifier: FeedForwardVerifier | LirpaVerifier) -> Case:
        def run() -> None:
            with torch.no_grad():
                verifier.margins(network, ball.interval(x), y)

        return run

    measured: dict[str, Case] = {
        "plain pass": forward,
        "own verdicts, tightest": lambda: certify(own, network, ball, x, y, margins=False),
        "own verdicts, tightest, as computed": lambda: certify(
            own, network, ball, x, y, margins=False, rounding_safe=False
        ),
        "own verdicts and all margins, tightest": lambda: certify(own, network, ball, x, y),
        "own margins, CROWN-IBP": margins(FeedForwardVerifier("crown-ibp")),
    }
    return measured | ({"auto_LiRPA margins, CROWN-IBP": margins(lirpa)} if peers else {})


def measure(rounds: int, peers: bool = True, device: str = "cpu") -> dict[str, float]:
    """Ratios to a plain pass."""
    torch.manual_seed(0)
    network = DMSmall((1, 28, 28)).to(device)
    train(network)
    return ratios(cases(network, *digits("test", device), peers=peers), rounds)
