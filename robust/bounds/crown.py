"""Intervals of activations by linear bounds backwards, from each layer to the box (CROWN, Zhang et al. 2018)."""

from __future__ import annotations

import torch

from robust.bounds.graph import Graph
from robust.bounds.operations import Affine, Interval
from robust.bounds.operations.linear import Scale
from robust.bounds.operations.maps import Reshape


def tightened(graph: Graph, values: list[Interval], rows_at_once: int) -> list[Interval]:
    """The interval of every value, with that of each operation's input that is relaxed tightened by a backward pass.

    Neither bound dominates: the result is what both allow.

    Args:
        graph: graph of the network.
        values: the interval of every value by interval bound propagation.
        rows_at_once: number of rows of each example held in memory.
    """
    relaxed = {i for node in graph.nodes if not isinstance(node.operation, Affine) for i in node.inputs}
    tight, exact = values[:1], _exact(graph) if type(values[0]) is Interval else set()
    for value, node in enumerate(graph.nodes, 1):
        tight.append(node.interval(tight))
        if value in relaxed - exact:
            tight[value] = _tightened(graph, tight, value, rows_at_once)
    return tight


def _exact(graph: Graph) -> set[int]:
    """The values whose intervals no bound can tighten: one linear operation on a box."""
    boxes, exact = {0}, {0}
    for value, (operation, inputs, *_) in enumerate(graph.nodes, 1):
        if isinstance(operation, Affine) and boxes.issuperset(inputs) and len(inputs) == 1:
            exact.add(value)
            boxes |= {value} if isinstance(operation, (Scale, Reshape)) else set()
    return exact


def _tightened(graph: Graph, values: list[Interval], value: int, rows_at_once: int) -> Interval:
    """The interval of one value of which those before are tight."""
    interval = values[value]
    batch, shape = len(interval.center), interval.center.shape[1:]
    uppers, negated = [], []
    units = torch.eye(shape.numel(), dtype=graph.dtype, device=interval.center.device)
    for rows in torch.split(units, rows_at_once):
        A = rows.view(1, len(rows), *shape).expand(batch, -1, *shape)
        uppers.append(graph.upper_bound(values, A, value))
        negated.append(graph.upper_bound(values, -A, value))
    upper = torch.minimum(torch.cat(uppers, 1).view(batch, *shape), interval.upper)
    lower = torch.maximum(-torch.cat(negated, 1).view(batch, *shape), interval.lower)
    return Interval.between(torch.minimum(lower, upper), upper)
