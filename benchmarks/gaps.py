"""Certified accuracy beside accuracy under attack: networks of ``zoo.py``, trained with bounds on the digits.

    uv run benchmarks/gaps.py [--only NAME ...] [--out FILE]

Each is trained from scratch by the fused bound in a linf ball that grows to 1/255, with the weights and the statistics
of clean passes of Shi et al. 2021. Digits are padded to 32 x 32 pixels and have three equal channels. Accuracies are
those of the 200 validation images, since the recipe was chosen with a look at the test images: as they are, under 50
steps of PGD, and certified by ``tightest``, in balls of 1/255 and of 4/255, for which it was not trained. Networks
whose training takes more than about three minutes on one core are not trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the checkout's own packages are measured

from benchmarks.tables import arguments, write_table
from benchmarks.zoo import Case
from datamodules import Digits
from datamodules.base import Split
from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, certify, clean_statistics, in_place_of_running
from robust.networks import initialise_for_intervals
from robust.threat_models import LinfBall

EPSILON, BATCH, STEPS, RATE = 1 / 255, 32, 230, 2e-3
LARGER = 4 / 255
COLUMNS = ("network", "clean, %", "under attack in 1/255, %", "certified, %", "gap, points")
COLUMNS += ("under attack in 4/255, %", "certified in it, %", "its gap, points")


def images(split: Split) -> tuple[Tensor, Tensor]:
    """All digits of a split, (N, 3, 32, 32), and their labels."""
    data = Digits()
    x, y = data.images(split)[torch.arange(len(data.load(split)))]
    return F.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous(), y


def train(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """Train with bounds; epsilon rises from a fifth of the steps to four fifths, while linear bounds give way."""
    initialise_for_intervals(network)
    verifier, optimizer = FeedForwardVerifier(), torch.optim.Adam(network.parameters(), RATE)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for step in range(STEPS):
        batch = torch.randint(len(x), (BATCH,), generator=generator)
        ramp = min(max((step / STEPS - 0.2) / 0.6, 0.0), 1.0)
        with clean_statistics(network) as statistics:
            loss = F.cross_entropy(network(x[batch]), y[batch])
        if ramp > 0:
            with in_place_of_running(statistics):
                box = LinfBall(ramp * EPSILON).interval(x[batch])
                loss = verifier.cross_entropy(network, box, y[batch], crown_weight=1 - ramp).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
    network.eval()


def gaps(case: Case) -> list[str]:
    """Train, and measure on the validation images: the cells after the name."""
    if not case.trained:
        return ["not trained", *[""] * (len(COLUMNS) - 2)]
    torch.manual_seed(0)
    network = case.build()
    train(network, *images("train"))
    x, y = images("val")
    clean = network(x).argmax(1) == y
    values = [percent(clean)]
    for ball in (LinfBall(EPSILON), LinfBall(LARGER)):
        certified = certify(FeedForwardVerifier("tightest"), network, ball, x, y, margins=False).certified
        attacked = clean & (network(PGD(steps=50)(network, ball, x, y)).argmax(1) == y)
        values += [percent(attacked), percent(certified), percent(attacked) - percent(certified)]
    return [f"{value:.1f}" for value in values]


def percent(correct: Tensor) -> float:
    """Percentage of the images that are, bool (N,)."""
    return float(100 * correct.double().mean())


def main() -> None:
    """Measure, print a Markdown table, and write it as JSON."""
    given = arguments(__doc__).parse_args()
    write_table("benchmarks/gaps.py", COLUMNS, gaps, given.only, given.out)


if __name__ == "__main__":
    main()
