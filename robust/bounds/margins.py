"""Bounds of the margins z_k - z_y and of the cross-entropy, from the intervals of a graph's values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robust.bounds.fusion import chord
from robust.bounds.graph import Graph
from robust.bounds.operations import Interval
from robust.bounds.operations.balls import BallInterval
from robust.bounds.operations.linear import Linear


def margin_interval(graph: Graph, values: list[Interval], y: Tensor, classes_at_once: int | None = None) -> Interval:
    """Intervals of z_k - z_y for all k; a linear last layer is merged with them: rows W_k - W_y.

    Args:
        graph: graph of the network.
        values: the interval of every value.
        y: labels (B,).
        classes_at_once: number of rows of each example held in memory; all of them by default.

    Returns:
        Center and radius of shape (B, K); exactly 0 at k = y.
    """
    logits, last = values[graph.output], graph.last
    center = logits.center - logits.center.gather(1, y[:, None])
    if not isinstance(last, Linear):
        radius = logits.radius + logits.radius.gather(1, y[:, None])
        return Interval(center, radius.scatter(1, y[:, None], 0.0))
    hidden = values[graph.nodes[graph.output - 1].inputs[0]]
    of_label = last.weight[y][:, None]
    parts = torch.split(last.weight, classes_at_once or len(last.weight))
    if isinstance(hidden, BallInterval):  # the network is linear: the bounds of merged rows are exact
        ends = [torch.cat([hidden.highest(sign * (part - of_label)) for part in parts], 1) for sign in (1, -1)]
        margin = Interval.between(-ends[1], ends[0])
        bias = 0.0 if last.bias is None else last.bias - last.bias[y][:, None]
        return margin._replace(center=margin.center + bias)
    # rows of each image are large: they are computed again for the gradient
    again = partial(checkpoint, _radius, use_reentrant=False, preserve_rng_state=False)
    of_rows = again if torch.is_grad_enabled() else _radius
    radii = [of_rows(part, of_label, hidden.radius) for part in parts]
    return Interval(center, radii[0] if len(radii) == 1 else torch.cat(radii, 1))


def _radius(weight: Tensor, of_label: Tensor, radius: Tensor) -> Tensor:
    """|W_k - W_y| r of rows W_k (K, n) and W_y (B, 1, n), and radii (B, n): (B, K)."""
    return torch.einsum("bkd,bd->bk", (weight - of_label).abs(), radius)


def margin_rows(graph: Graph, y: Tensor, classes: Tensor, at_once: int) -> Iterator[Tensor]:
    """Rows z_k - z_y on the logits, (B, S, K), of S classes k at a time.

    Args:
        graph: graph of the network.
        y: labels (B,).
        classes: class indices of each image, (B, R).
        at_once: largest number of rows of each image.
    """
    units = torch.eye(graph.num_classes, dtype=graph.dtype, device=y.device)
    for part in torch.split(classes, at_once, dim=1):
        yield units[part] - units[y][:, None]


def fused_crown(graph: Graph, values: list[Interval], y: Tensor, margin: Interval, shift: Tensor) -> Tensor:
    """CROWN-IBP's upper bound of E exp(-shift), E = sum_k exp(z_k - z_y): each exp by its chord, then one row.

    Args:
        graph: graph of the network.
        values: the interval of every value; the list is emptied.
        y: labels (B,).
        margin: intervals of z_k - z_y, (B, K).
        shift: (B, 1), against overflow.

    Returns:
        Shape (B,).
    """
    slope, intercept = chord(margin.lower, margin.upper, 2 * margin.radius, shift)
    of_label = F.one_hot(y, slope.shape[1]).to(slope.dtype)
    row = slope - of_label * slope.sum(-1, keepdim=True)  # on the logits: sum_k slope_k (z_k - z_y)
    return graph.upper_bound(values, row[:, None], spent=True).squeeze(1) + intercept.sum(-1)
