"""Which networks the own verifier bounds, how tightly, and how fast beside auto_LiRPA: a table of 20 networks.

    uv run benchmarks/networks.py [--rounds N] [--only NAME ...] [--out FILE]

Weights are untrained, batch normalisation has the statistics of 16 random images, images are random in [0, 1].
Looseness is the rise of the cross-entropy that the margins' bounds allow, over the rise that 20 steps of PGD find, in
a linf ball of 1/255: 1 is exact. Time is that of a training step by the fused bound (half IBP, half CROWN-IBP, forward
and backward) on 8 images, process time, median over the rounds, the two verifiers in turn.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the checkout's own packages are measured

from benchmarks.tables import arguments, write_table
from benchmarks.zoo import Case
from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, LirpaVerifier, Verifier
from robust.bounds.agreement import checked_graph
from robust.errors import UnsupportedLayerError
from robust.threat_models import LinfBall

EPSILON, BATCH = 1 / 255, 8
COLUMNS = {
    "network": "network",
    "parameters": "parameters",
    "operations": "operations",
    "ibp": "looseness, `ibp`",
    "crown-ibp": "`crown-ibp`",
    "tightest": "`tightest`",
    "crown": "`crown`",
    "own_ms": "step, ms",
    "ratio": "auto_LiRPA's over it",
    "remark": "remark",
}


def prepared(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with the statistics of random images, in evaluation mode; images and the labels that it gives them."""
    torch.manual_seed(0)
    network, images = case.build(), torch.rand(16, 3, 32, 32)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None
    with torch.no_grad():
        network.train()(images)
        labels = network.eval()(images[:BATCH]).argmax(1)
    return network, images[:BATCH], labels


def looseness(network: nn.Module, x: Tensor, y: Tensor, methods: list[Any]) -> dict[str, float]:
    """Rise of the loss that each bound allows over the rise that an attack finds, both summed over the images."""
    ball = LinfBall(EPSILON)
    attacked = PGD(steps=20)(network, ball, x, y)
    rises = {}
    with torch.no_grad():
        clean, found = (F.cross_entropy(network(images), y, reduction="none") for images in (x, attacked))
        for method in methods:
            margins = FeedForwardVerifier(method).margins(network, ball.interval(x), y)
            allowed = F.pad(-margins, (1, 0)).logsumexp(1)
            rises[method] = float((allowed - clean).sum() / (found - clean).sum())
    return rises


def step_time(verifiers: list[Verifier], network: nn.Module, x: Tensor, y: Tensor, rounds: int) -> list[float]:
    """Median milliseconds of a step by each verifier, measured in turn; the first round does not count."""
    times: list[list[float]] = [[] for _ in verifiers]
    box = LinfBall(EPSILON).interval(x)
    for _ in range(rounds + 1):
        for verifier, seconds in zip(verifiers, times, strict=True):
            network.zero_grad()
            start = time.process_time()
            verifier.cross_entropy(network, box, y, 0.5).mean().backward()
            seconds.append(time.process_time() - start)
    return [1e3 * statistics.median(seconds[1:]) for seconds in times]


def row(case: Case, rounds: int) -> dict[str, Any]:
    """The measured values of a network; what cannot be bounded is in the remark."""
    network, x, y = prepared(case)
    given: dict[str, Any] = {"network": case.name, "parameters": sum(p.numel() for p in network.parameters())}
    own = FeedForwardVerifier()
    try:
        given["operations"] = len(checked_graph(network, x, weights_too=True).nodes)
        given |= looseness(network, x, y, ["ibp", "crown-ibp", "tightest", *(["crown"] if case.crown else [])])
    except UnsupportedLayerError as error:
        return {**given, "remark": f"`{error}`"}
    try:
        given["own_ms"], theirs = step_time([own, LirpaVerifier()], network, x, y, rounds)
        given["ratio"] = theirs / given["own_ms"]
    except Exception as error:  # auto_LiRPA raises whatever it meets; the table says what
        given["own_ms"] = step_time([own], network, x, y, rounds)[0]
        reason = str(error).split("\n")[0] if isinstance(error, UnsupportedLayerError) else type(error).__name__
        given["remark"] = f"auto_LiRPA: `{reason}`"
    return given


def shown(value: Any) -> str:
    """A cell: numbers with two digits or as whole ones, and powers of ten where they are large."""
    if not isinstance(value, float):
        return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    if value < 1e4:
        return f"{value:.1f}" if value < 10 else f"{value:.0f}"
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def main() -> None:
    """Measure, print a Markdown table, and write it as JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()

    def cells(case: Case) -> list[str]:
        values = row(case, given.rounds)
        return [shown(values.get(key)) for key in list(COLUMNS)[1:]]

    command = f"benchmarks/networks.py --rounds {given.rounds}"
    write_table(command, list(COLUMNS.values()), cells, given.only, given.out)


if __name__ == "__main__":
    main()
