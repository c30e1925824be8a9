"""Regularisers of the intervals before ReLUs, for short certified training (Shi et al. 2021, Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust.bounds.agreement import checked_graph
from robust.bounds.operations import Interval
from robust.bounds.operations.relu import ReLU
from robust.bounds.verifier import check_box, full_precision, in_bound_precision
from robust.errors import require
from robust.passes import INTERVALS, reported
from robust.threat_models import Box

Mean = Callable[[Tensor], Tensor]


def of_one(value: Tensor) -> Tensor:
    """The mean over one process: the value itself."""
    return value


def interval_regulariser(network: nn.Module, box: Box, tolerance: float = 0.5, mean: Mean = of_one) -> Tensor:
    """Sum of ``tightness`` and ``balance`` of the intervals before each ReLU, mean over the ReLUs.

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K), with operations that have bounds, at least one ReLU.
        box: per-pixel interval, each side (B, C, H, W).
        tolerance: tau in (0, 1], from which ratios are not penalised.
        mean: function that averages a tensor of any shape over the processes, which have equal parts of the batch, with
            gradients to each; the regularisers are not additive over images. One process by default.

    Returns:
        A number, 0 or above, with gradients to weights and box.

    Raises:
        SettingError: if there is no ReLU or the tolerance is out of range.
        UnsupportedLayerError: in the cases of :class:`robust.bounds.FeedForwardVerifier`.
    """
    require(0 < tolerance <= 1, "tolerance", tolerance, "give a value in (0, 1]")
    with full_precision(box.lower.device):
        box = in_bound_precision(network, box)
        graph = checked_graph(network, box.lower, weights_too=False)
        values = graph.propagate(box)
        check_box(*values[0])
        before = [values[node.inputs[0]] for node in graph.nodes if isinstance(node.operation, ReLU)]
        require(bool(before), "network", type(network).__name__, "it has no ReLU, to which the regularisers apply")
        terms = [tightness(h, values[0], tolerance, mean) + balance(h, tolerance, mean) for h in before]
        return reported(torch.stack(terms).mean().expand(len(box.lower)), network, box.lower, INTERVALS).mean()


def tightness(h: Interval, box: Interval, tolerance: float, mean: Mean = of_one) -> Tensor:
    """L_tightness of one layer: max(0, tau - r_0 / r) / tau, with the mean radii of the box and of the layer.

    >>> box, h = (Interval(torch.zeros(1, 2), torch.full((1, 2), radius)) for radius in (1.0, 4.0))
    >>> tightness(h, box, 0.5)  # (1/2 - 1/4) / (1/2)
    tensor(0.5000)
    """
    initial, radius = mean(torch.stack([box.radius.mean(), h.radius.mean()])).unbind()
    ratio = initial / radius.clamp(min=1e-12)
    return (tolerance - ratio).clamp(min=0) / tolerance


def balance(h: Interval, tolerance: float, mean: Mean = of_one) -> Tensor:
    """L_relu of one layer: activations that are surely positive and surely negative are to weigh about the same.

    Both the sums of their midpoints and the sums of their squared distances from the mean midpoint are compared: the
    smaller over the larger, below tau. A side without activations has the ratio 0, without gradient.

    >>> center = torch.tensor([[3.0, -1.0, -1.0, 0.0]])
    >>> balance(Interval(center, torch.full_like(center, 0.5)), 0.5)  # 2 / 3 is enough; 3.125 / 7.5625 is not
    tensor(0.1736)
    """
    active, inactive = h.lower > 0, h.upper < 0
    squares = (h.center - mean(h.center.mean())).square()
    sums = [(size * side).sum() for side in (active, inactive) for size in (h.center.abs(), squares)]
    one, other = mean(torch.stack(sums)).view(2, 2).unbind()
    ratios = torch.minimum(one, other) / torch.maximum(one, other).clamp(min=1e-12)
    return (tolerance - ratios).clamp(min=0).sum() / tolerance
