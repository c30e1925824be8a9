"""The own verifier: IBP, CROWN-IBP, CROWN and the fused cross-entropy bound of networks without cycles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import get_args

import torch
from torch import Tensor, nn

from robust.bounds.agreement import checked_graph
from robust.bounds.cascade import Cascade, Decision, Method
from robust.bounds.crown import tightened
from robust.bounds.fusion import mixed_bound
from robust.bounds.graph import Graph
from robust.bounds.margins import fused_crown, margin_interval, margin_rows
from robust.bounds.operations import Interval
from robust.bounds.rounding import RoundingErrors, of_last
from robust.bounds.verifier import (
    TrainingPrecision,
    check_box,
    check_crown_weight,
    full_precision,
    in_bound_precision,
    in_training_precision,
    other_classes,
)
from robust.checks import as_classes, check_labels
from robust.errors import require
from robust.passes import INTERVALS, LINEAR_ROW, reported
from robust.threat_models import Box, Region

COPIES = 6  # tensors of the largest activation's size that a pass holds at a time, about


class FeedForwardVerifier:
    """Bounds of any network whose operations have bounds: sequences, residual and dense blocks, gates.

    Batch-norm always uses its evaluation statistics. The network's forward pass is recorded as a graph and compared
    with the bounds, once for each network and again after a change. l2 and l1 balls are bounded by dual norms, where
    they enter the first layer and where linear bounds reach them. See :class:`robust.bounds.verifier.Verifier`.

    >>> from robust.threat_models import Box
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x, y = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2), torch.tensor([0])
    >>> box = Box(x - 0.125, x + 0.125)
    >>> FeedForwardVerifier("ibp").margins(network, box, y).detach()  # x_1 - x_2 is 1/2, less twice 1/8
    tensor([[0.2500]])
    >>> FeedForwardVerifier().cross_entropy(network, box, y).detach()  # log(1 + exp(-1/4))
    tensor([0.5759])

    Args:
        method: bound of the margins. ``ibp``: interval bound propagation, a linear last layer merged with the margins;
            ``crown-ibp``: one linear backward pass over IBP's intermediate intervals (Zhang et al. 2020), which costs
            about K times as much; ``tightest``: the larger of the two, margin by margin (neither dominates); ``crown``:
            ``tightest`` with the intermediate intervals by linear backward passes too (Zhang et al. 2018), which costs
            as many rows as there are activations.
        memory: bytes that margins without gradient may take, about; images and classes go through in parts of that.
        training_precision: precision of the products in the cross-entropy bound: ``float32``; ``tf32``, which GPUs
            have; or ``bfloat16``, faster where the processor has instructions for it, else far slower. Margins are in
            float32 with a bound of their rounding, or in float64: a training loss need not be a certificate.

    Raises:
        SettingError: for another method or precision, or a memory that is not positive.
        UnsupportedLayerError: when it meets a network with an operation that has no bound, or one that computes
            something else.
    """

    def __init__(
        self, method: Method = "ibp", memory: float = 2**30, training_precision: TrainingPrecision = "float32"
    ) -> None:
        require(method in get_args(Method), "method", method, "give ibp, crown-ibp, tightest or crown")
        require(memory > 0, "memory", memory, "give a positive number of bytes")
        known = training_precision in get_args(TrainingPrecision)
        require(known, "training_precision", training_precision, "give float32, tf32 or bfloat16")
        self.method = method
        self.memory = memory
        self.training_precision = training_precision

    def margins(self, network: nn.Module, box: Region, y: Tensor) -> Tensor:
        """Lower bounds of z_y - z_k, shape (B, K-1); see :class:`robust.bounds.verifier.Verifier`."""
        y = as_classes(y)
        with full_precision(y.device):
            box = in_bound_precision(network, box)
            graph = checked_graph(network, box.lower, weights_too=True)
            return self._in_parts(self._margins, graph, _of_first(graph, box), box, y)[0]

    def margin_range(self, network: nn.Module, box: Region, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Lower and upper limits of the margins' bounds in exact arithmetic, both (B, K-1).

        None where the rounding of an operation is not known, and for the method ``crown``.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K), whose weights are taken as exact numbers.
            box: box in the precision of the bounds, float32 or float64, with sides ``x - budgets`` and
                ``x + budgets`` rounded to it.
            y: labels (B,).
        """
        if self.method == "crown":
            return None
        y = as_classes(y)
        with full_precision(y.device), torch.no_grad():
            in_bound_precision(network, box)
            graph = checked_graph(network, box.lower, weights_too=True)
            if not graph.rounding_known:
                return None
            low, high = self._in_parts(self._margin_range, graph, _of_first(graph, box), box, y)
            return low, high

    def decide(self, network: nn.Module, box: Region, y: Tensor, *, rounding_safe: bool = True) -> Decision | None:
        """The verdicts that the margins' bounds give, without most of the margins.

        Interval bounds come first. The rest, whose label wins at the midpoint of the box or ball, have a linear bound
        of the lowest margin first, then of those margins that intervals leave open. Images close to 0 have all.

        Args:
            network: classifier, as for ``margin_range``.
            box: box or ball, as for ``margin_range``.
            y: labels (B,).
            rounding_safe: bound the rounding errors; without, a margin above 0 as computed is enough.

        Returns:
            Certified images, bool (B,), and those that cannot be, in exact arithmetic; neither where it is to be
            computed again in more precision (and, by ``crown``, which has no bound of its rounding, is certified as
            computed). None where the rounding of an operation is not known.
        """
        y = as_classes(y)
        with full_precision(y.device), torch.no_grad():
            converted = in_bound_precision(network, box)
            if rounding_safe and self.method == "crown" and converted.lower.dtype != box.lower.dtype:
                return None  # margins, which it then is about, are of the converted box
            box = box if rounding_safe else converted
            graph = checked_graph(network, box.lower, weights_too=True)
            if rounding_safe and not graph.rounding_known:
                return None
            decide = partial(self._decide, network, rounding_safe)
            return Decision(*self._in_parts(decide, graph, _of_first(graph, box), box, y))

    def cross_entropy(self, network: nn.Module, box: Region, y: Tensor, crown_weight: float = 1.0) -> Tensor:
        """Fused upper bound of the cross-entropy, shape (B,); see :class:`robust.bounds.verifier.Verifier`.

        The cross-entropy is log E with E = sum_k exp(z_k - z_y). U, an upper bound of E, mixes CROWN-IBP's and IBP's;
        both are scaled by exp(-shift). Source: Xu et al. 2020, Sec. 3.3 (loss fusion).
        """
        check_crown_weight(crown_weight)
        y = as_classes(y)
        with full_precision(y.device):
            box = in_bound_precision(network, box)
            graph = checked_graph(network, box.lower, weights_too=False)
        with in_training_precision(self.training_precision, y.device):
            values = _propagated(graph, box, y)
            margin = Interval(*(part.to(graph.dtype) for part in margin_interval(graph, values, y)))
            highest = margin.center + margin.radius
            if crown_weight == 0:
                return reported(highest.logsumexp(-1), network, box.lower, INTERVALS)
            shift = highest.detach().amax(-1, keepdim=True)
            bound = mixed_bound(fused_crown(graph, values, y, margin, shift), highest, shift, crown_weight)
            return reported(bound, network, box.lower, INTERVALS + LINEAR_ROW)

    def _margins(self, graph: Graph, box: Region, y: Tensor) -> tuple[Tensor, ...]:
        values = _propagated(graph, box, y)
        if self.method == "crown":
            values = tightened(graph, values, self._rows_at_once(graph, _largest(values), len(y)))
        bounds = []
        if self.method != "crown-ibp":
            bounds.append(-self._highest(graph, values, y))
        if self.method != "ibp":
            parts = [graph.upper_bound(values, rows) for rows in self._rows(graph, values, y)]
            bounds.append(-torch.cat(parts, 1))
        return (bounds[0] if len(bounds) == 1 else torch.maximum(*bounds),)

    def _margin_range(self, graph: Graph, box: Region, y: Tensor) -> tuple[Tensor, ...]:
        values = _propagated(graph, box, y)
        errors = RoundingErrors(graph, values)
        ranges = []
        if self.method != "crown-ibp":
            margins = -self._highest(graph, values, y)
            error = errors.of_margins(y).gather(1, other_classes(y, margins.shape[1] + 1))
            ranges.append((margins - error, margins + error))
        if self.method != "ibp":
            weights = errors.row_weights()
            parts = [graph.upper_bound_and_error(values, rows, weights) for rows in self._rows(graph, values, y)]
            bound, error = (torch.cat(each, 1) for each in zip(*parts, strict=True))
            ranges.append((-bound - error, -bound + error))
        if len(ranges) == 1:
            return ranges[0]
        return tuple(torch.maximum(*ends) for ends in zip(*ranges, strict=True))

    def _decide(
        self, network: nn.Module, rounding_safe: bool, graph: Graph, box: Region, y: Tensor
    ) -> tuple[Tensor, ...]:
        certified = torch.zeros_like(y, dtype=torch.bool)
        if rounding_safe and self.method != "crown-ibp" and isinstance(box, Box):
            certified = self._certain(graph, box, y)
        refused, rest = torch.zeros_like(certified), (~certified).nonzero().squeeze(1)
        if len(rest) > 0:
            part = box.map(itemgetter(rest))
            certified[rest], refused[rest] = self._decide_rest(network, rounding_safe, graph, part, y[rest])
        return certified, refused

    def _certain(self, graph: Graph, box: Box, y: Tensor) -> Tensor:
        """Whether intervals that enclose the exact ones certify each image, bool (B,): most, in a robust network."""
        values = _propagated(graph, box, y, enclosed=True)
        error = of_last(graph, values, y).gather(1, other_classes(y, graph.num_classes))
        return (self._highest(graph, values, y) + error < 0).all(1)

    def _decide_rest(
        self, network: nn.Module, rounding_safe: bool, graph: Graph, box: Region, y: Tensor
    ) -> tuple[Tensor, ...]:
        values = _propagated(graph, box, y)
        margins, rows_at_once = -self._highest(graph, values, y), partial(self._rows_at_once, graph, _largest(values))
        cascade = Cascade(graph, values, y, margins, rows_at_once)
        errors = RoundingErrors(graph, values) if rounding_safe else None
        certified, refused = cascade.verdicts(network, self.method, errors)
        near = (~certified & ~refused).nonzero().squeeze(1)
        if self.method == "crown" and len(near) > 0:
            positive = (self._margins(graph, box.map(itemgetter(near)), y[near])[0] > 0).all(1)
            final = not rounding_safe or graph.dtype == torch.float64
            certified[near], refused[near] = positive if final else False, ~positive
        return certified, refused

    def _highest(self, graph: Graph, values: list[Interval], y: Tensor) -> Tensor:
        """IBP's upper bounds of z_k - z_y for the classes k other than y, (B, K-1)."""
        hidden = values[graph.nodes[graph.output - 1].inputs[0]].center
        margin = margin_interval(graph, values, y, self._rows_at_once(graph, hidden[0].numel(), len(y)))
        return (margin.center + margin.radius).gather(1, other_classes(y, margin.center.shape[1]))

    def _rows(self, graph: Graph, values: list[Interval], y: Tensor) -> Iterator[Tensor]:
        """Rows z_k - z_y on the logits (B, S, K), S classes k other than y in ascending order at a time."""
        others, at_once = other_classes(y, graph.num_classes), self._rows_at_once(graph, _largest(values), len(y))
        return margin_rows(graph, y, others, at_once)

    def _rows_at_once(self, graph: Graph, size: int, images: int) -> int:
        return max(int(self.memory / (COPIES * size * images * graph.dtype.itemsize)), 1)

    def _in_parts(
        self,
        bound: Callable[[Graph, Region, Tensor], tuple[Tensor, ...]],
        graph: Graph,
        first: list[Interval],
        box: Region,
        y: Tensor,
    ) -> tuple[Tensor, ...]:
        """``bound`` of all images; without gradients, of as many images at a time as the memory allows."""
        if torch.is_grad_enabled():
            return bound(graph, box, y)
        sizes = [interval.center.numel() for interval in first]
        images = max(int(self.memory / (COPIES * sum(sizes) * box.lower.element_size())), 1)
        slices = [slice(start, start + images) for start in range(0, len(y), images)]
        parts = [bound(graph, box.map(itemgetter(part)), y[part]) for part in slices]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _propagated(graph: Graph, box: Region, y: Tensor, enclosed: bool = False) -> list[Interval]:
    """The interval of every value, as computed or enclosing the exact one; labels and box are checked."""
    check_labels(y, len(box.lower), graph.num_classes)
    if enclosed and isinstance(box, Box):
        check_box(*Interval.between(*box))
        return graph.enclose(box)
    values = graph.propagate(box)
    check_box(*values[0])
    return values


@torch.no_grad()
def _of_first(graph: Graph, box: Region) -> list[Interval]:
    """The interval of every value of the first image, for their kinds and sizes."""
    return graph.propagate(box.map(itemgetter(slice(1))))


def _largest(values: list[Interval]) -> int:
    return max(value.center[0].numel() for value in values)
