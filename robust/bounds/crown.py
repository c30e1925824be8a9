"""Intervals of activations by linear bounds backwards, from each layer to the box (CROWN, Zhang et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.bounds.graph import Graph
from robust.bounds.operations import Affine, Interval, Operation
from robust.bounds.operations.linear import Scale
from robust.bounds.operations.maps import Reshape


def tightened(graph: Graph, values: list[Interval], rows_at_once: int) -> list[Interval]:
    """The interval of every value, with that of each operation's input that is relaxed tightened by a backward pass.

    Neither bound dominates: the result is what both allow. Where an operation is linear over the interval, such as ReLU
    over [1, 2], a tighter interval would change no linear bound, and no row is computed for it.

    Args:
        graph: graph of the network.
        values: the interval of every value by interval bound propagation.
        rows_at_once: number of rows of each example held in memory.
    """
    relaxing: dict[int, list[Operation]] = {}
    for node in graph.nodes:
        for i in node.inputs if not isinstance(node.operation, Affine) else ():
            relaxing.setdefault(i, []).append(node.operation)
    tight, exact = values[:1], _exact(graph) if type(values[0]) is Interval else set()
    for value, node in enumerate(graph.nodes, 1):
        tight.append(node.interval(tight))
        if value in relaxing and value not in exact:
            bent = torch.stack([operation.bends(tight[value]) for operation in relaxing[value]]).any(0)
            tight[value] = _tightened(graph, tight, value, rows_at_once, bent)
    return tight


def _exact(graph: Graph) -> set[int]:
    """The values whose intervals no bound can tighten: one linear operation on a box."""
    boxes, exact = {0}, {0}
    for value, (operation, inputs, *_) in enumerate(graph.nodes, 1):
        if isinstance(operation, Affine) and boxes.issuperset(inputs) and len(inputs) == 1:
            exact.add(value)
            boxes |= {value} if isinstance(operation, (Scale, Reshape)) and operation.diagonal else set()
    return exact


def _tightened(graph: Graph, values: list[Interval], value: int, rows_at_once: int, bent: Tensor) -> Interval:
    """The interval of one value of which those before are tight, tightened where ``bent``, bool (B, *shape)."""
    interval = values[value]
    if not bool(bent.any()):
        return interval
    batch, shape = len(bent), bent.shape[1:]
    bent, lower, upper = bent.flatten(1), interval.lower.flatten(1), interval.upper.flatten(1)
    order = bent.byte().argsort(dim=1, descending=True, stable=True)[:, : int(bent.sum(1).amax())]
    for columns in torch.split(order, rows_at_once, 1):
        units = torch.zeros(*columns.shape, shape.numel(), dtype=graph.dtype, device=bent.device)
        A = units.scatter_(2, columns[..., None], 1.0).view(batch, -1, *shape)
        lowest, highest = (sign * graph.upper_bound(values, sign * A, value) for sign in (-1, 1))
        before = lower.gather(1, columns), upper.gather(1, columns)
        chosen = bent.gather(1, columns)  # the rest fills up the images with fewer
        lower = lower.scatter(1, columns, torch.where(chosen, torch.maximum(lowest, before[0]), before[0]))
        upper = upper.scatter(1, columns, torch.where(chosen, torch.minimum(highest, before[1]), before[1]))
    return Interval.between(torch.minimum(lower, upper).view(batch, *shape), upper.view(batch, *shape))
