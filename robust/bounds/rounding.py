"""Bounds of the rounding errors of interval and linear bounds: what they are worth in exact arithmetic.

They hold for direct sums, as CPUs take them (cuDNN may take Winograd's), where nothing underflows, and where PyTorch's
exp, erf, tanh and their like are within a few units in the last place, as their tests ask.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor

from robust.bounds.graph import Graph
from robust.bounds.operations import Arithmetic, Interval


class RoundingErrors:
    """Bounds of how far exact activations and linear bounds lie outside the computed ones.

    Args:
        graph: graph of the network.
        values: the computed interval of every value (see ``Graph.propagate``). The exact box may differ from the first
            by the rounding of ``x - budgets`` and ``x + budgets``.

    Attributes:
        errors: error of every value, of its shape: no exact activation is farther outside its interval. None after an
            operation whose rounding is not known.
    """

    def __init__(self, graph: Graph, values: list[Interval]) -> None:
        self._graph, self._values = graph, values
        self._arithmetic = Arithmetic(values[0].center.dtype, len(graph.nodes))
        self.errors: list[Tensor | None] = [8 * self._arithmetic.gamma(1) * values[0].size]
        for operation, inputs, *_ in graph.nodes:
            known = self._of_inputs(inputs)
            error = None if known is None else operation.error(*known, self._arithmetic)
            remaining = values[len(self.errors)].rounding  # more than 1 where the result is a ball, too
            rounding = max(values[i].rounding for i in inputs) / remaining
            self.errors.append(error if error is None or rounding == 1 else rounding * error)

    def select(self, images: Tensor) -> RoundingErrors:
        """Select the errors of the images (b,)."""
        chosen = copy.copy(self)
        chosen._values = [value.select(images) for value in self._values]
        chosen.errors = [error if error is None else error[images] for error in self.errors]
        return chosen

    def of_margins(self, y: Tensor) -> Tensor:
        """Largest error (B, K) of IBP's bounds of z_k - z_y with the last layer merged; 0 at k = y."""
        error = self.errors[self._graph.output]
        assert error is not None
        return _of_differences(error, y)

    def row_weights(self) -> list[Tensor | None]:
        """Weights of the absolute coefficients of a row on each value in the error bound; None where not known.

        The weighted sum over all values bounds the error of the linear bound.
        """
        box, error = self._values[0], self.errors[0]
        assert error is not None
        weights: list[Tensor | None] = [error + box.rounding * self._arithmetic.of_sum(box.center) * box.size]
        for operation, inputs, *_ in self._graph.nodes:
            known = self._of_inputs(inputs)
            weights.append(None if known is None else operation.row_error(*known, self._arithmetic))
        return [self._with_sums(i, weight) for i, weight in enumerate(weights)]

    def _with_sums(self, value: int, weight: Tensor | None) -> Tensor | None:
        """The rows on a value that several operations take are added up, with rounded coefficients."""
        error, uses = self.errors[value], Counter(i for node in self._graph.nodes for i in node.inputs)[value]
        if weight is None or error is None or uses < 2:
            return weight
        return weight + self._arithmetic.gamma(uses) * (self._values[value].size + error)

    def _of_inputs(self, inputs: tuple[int, ...]) -> tuple[tuple[Interval, ...], tuple[Tensor, ...]] | None:
        errors = [error for i in inputs if (error := self.errors[i]) is not None]
        return (tuple(self._values[i] for i in inputs), tuple(errors)) if len(errors) == len(inputs) else None


def of_last(graph: Graph, values: list[Interval], y: Tensor) -> Tensor:
    """Largest error (B, K) of the last step of IBP's bounds of z_k - z_y, if the values enclose; 0 at k = y.

    Args:
        graph: graph of the network.
        values: the interval of every value, from ``Graph.enclose``.
        y: labels (B,).
    """
    arithmetic = Arithmetic(values[0].center.dtype, len(graph.nodes))
    logits = values[graph.output]
    error = 8 * arithmetic.gamma(1) * logits.size
    if graph.output > 0:
        operation, indices, *_ = graph.nodes[graph.output - 1]
        inputs = tuple(values[i] for i in indices)
        of_operation = operation.error(inputs, tuple(torch.zeros_like(h.center) for h in inputs), arithmetic)
        assert of_operation is not None
        error = error + of_operation
    return _of_differences(error, y)


def _of_differences(error: Tensor, y: Tensor) -> Tensor:
    """Errors (B, K) of z_k - z_y from those of the logits (B, K); 0 at k = y."""
    both = error + error.gather(1, y[:, None])
    return both.scatter(1, y[:, None], 0.0)
