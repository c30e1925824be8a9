"""Verdicts by as few bounds as decide them: interval bounds first, then one row of a linear bound after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from robust.bounds.graph import Graph
from robust.bounds.margins import margin_rows
from robust.bounds.operations import Interval
from robust.bounds.rounding import RoundingErrors
from robust.bounds.verifier import bound_precision, other_classes
from robust.modes import in_mode
from robust.passes import uncounted

Method = Literal["ibp", "crown-ibp", "tightest", "crown"]


class Decision(NamedTuple):
    """Verdict of the bounds on each image, bool (B,): certified, or refused; neither where rounding may decide."""

    certified: Tensor
    refused: Tensor


class Cascade(NamedTuple):
    """The margins of a batch, bounded by intervals, and those of single images and classes by linear bounds.

    Attributes:
        graph: graph of the network.
        values: the interval of every value.
        y: labels (B,).
        margins: bounds of the margins by intervals, (B, K-1).
        rows_at_once: number of rows of each image held in memory, from the number of images.
    """

    graph: Graph
    values: list[Interval]
    y: Tensor
    margins: Tensor
    rows_at_once: Callable[[int], int]

    def select(self, images: Tensor) -> Cascade:
        """Select the intervals, labels and margins of the images (b,)."""
        values = [value.select(images) for value in self.values]
        return self._replace(values=values, y=self.y[images], margins=self.margins[images])

    def verdicts(self, network: nn.Module, method: Method, errors: RoundingErrors | None) -> Decision:
        """The verdicts by a method, without the last steps of ``crown``.

        Args:
            network: network that the graph represents.
            method: see :class:`robust.bounds.FeedForwardVerifier`.
            errors: rounding errors of each image; None: take bounds as computed.
        """
        error = self._error(errors)
        certified, refused = (self.margins - error > 0).all(1), (self.margins + error <= 0).any(1)
        if method == "ibp":
            return Decision(certified, refused)
        if method == "crown-ibp":  # to which intervals alone say nothing
            certified = torch.zeros_like(certified)
        refused = torch.zeros_like(certified)
        images = (~certified).nonzero().squeeze(1)
        refused[images] = self.select(images)._misclassified(network, error[images])
        if method != "crown":
            images = images[~refused[images]]
            certified[images], refused[images] = self._by_rows(images, error, errors, method == "tightest")
        return Decision(certified, refused)

    def _error(self, errors: RoundingErrors | None) -> Tensor:
        if errors is None:
            return torch.zeros_like(self.margins)
        return errors.of_margins(self.y).gather(1, other_classes(self.y, self.graph.num_classes))

    def _misclassified(self, network: nn.Module, error: Tensor) -> Tensor:
        """Whether the midpoint of each box or ball is misclassified by more than rounding explains; bool (B,)."""
        with in_mode(network, "eval"), uncounted():
            logits: Tensor = network(self.values[0].point.to(bound_precision(network)))
        margins = logits.gather(1, self.y[:, None]) - logits.gather(1, other_classes(self.y, logits.shape[1]))
        rounding = 1e-3 * (1 + logits.abs().amax(1, keepdim=True)) + error
        return (margins < -rounding).any(1)

    def _by_rows(self, images: Tensor, error: Tensor, errors: RoundingErrors | None, both: bool) -> Decision:
        """The verdicts on images (b,) by rows of linear bounds, the lowest by interval bounds first.

        An image is left as soon as one of its rows refuses it.

        Args:
            images: indices in the batch.
            error: rounding errors of the margins by intervals (B, K-1).
            errors: see ``verdicts``.
            both: take the larger of both bounds of each margin; else the linear bound.
        """
        low, order = (self.margins - error)[images].sort(1)
        rows = (low <= 0).sum(1) if both else torch.full_like(images, low.shape[1])
        certain, refused = torch.ones_like(images, dtype=torch.bool), torch.zeros_like(images, dtype=torch.bool)
        left, start = (rows > 0).nonzero().squeeze(1), 0
        while len(left) > 0:
            stop = max(2 * start, 1)
            chosen, columns = images[left], order[left, start:stop]
            low, high = self._linear_range(chosen, columns, errors)
            if both:
                margins, rounding = self.margins[chosen].gather(1, columns), error[chosen].gather(1, columns)
                low, high = torch.maximum(low, margins - rounding), torch.maximum(high, margins + rounding)
            certain[left] &= (low > 0).all(1)
            refused[left] |= (high <= 0).any(1)
            left, start = left[~refused[left] & (rows[left] > stop)], stop
        return Decision(certain & ~refused, refused)

    def _linear_range(self, images: Tensor, columns: Tensor, errors: RoundingErrors | None) -> tuple[Tensor, Tensor]:
        """Lower and upper limits of the linear bounds of margins (b, s) of images (b,) in exact arithmetic."""
        part = self.select(images)
        classes = other_classes(part.y, self.graph.num_classes).gather(1, columns)
        weights = None if errors is None else errors.select(images).row_weights()
        parts = []
        for rows in margin_rows(self.graph, part.y, classes, self.rows_at_once(len(images))):
            if weights is None:
                bound = self.graph.upper_bound(part.values, rows)
                parts.append((bound, torch.zeros_like(bound)))
            else:
                parts.append(self.graph.upper_bound_and_error(part.values, rows, weights))
        bound, error = (torch.cat(each, 1) for each in zip(*parts, strict=True))
        return -bound - error, -bound + error
