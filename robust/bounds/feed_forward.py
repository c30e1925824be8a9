"""The own verifier: IBP, CROWN-IBP, CROWN and the fused cross-entropy bound of networks without cycles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robust.bounds.agreement import checked_graph
from robust.bounds.crown import tightened
from robust.bounds.graph import Graph
from robust.bounds.margins import fused_crown, margin_interval
from robust.bounds.operations import Interval
from robust.bounds.rounding import RoundingErrors
from robust.bounds.verifier import check_box, full_precision, in_bound_precision, other_classes
from robust.checks import check_labels
from robust.errors import require
from robust.passes import INTERVALS, LINEAR_ROW, reported
from robust.threat_models import Box

Method = Literal["ibp", "crown-ibp", "tightest", "crown"]
COPIES = 6  # tensors of the largest activation's size that a pass holds at a time, about


class FeedForwardVerifier:
    """Bounds of any network whose operations have bounds: sequences, residual and dense blocks, gates.

    Batch-norm always uses its evaluation statistics. The network's forward pass is recorded as a graph and compared
    with the bounds, once for each network and again after a change. See :class:`robust.bounds.verifier.Verifier`.

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

    Raises:
        SettingError: for another method, or a memory that is not positive.
        UnsupportedLayerError: when it meets a network with an operation that has no bound, or one that computes
            something else.
    """

    def __init__(self, method: Method = "ibp", memory: float = 2**30) -> None:
        require(method in get_args(Method), "method", method, "give ibp, crown-ibp, tightest or crown")
        require(memory > 0, "memory", memory, "give a positive number of bytes")
        self.method = method
        self.memory = memory

    def margins(self, network: nn.Module, box: Box, y: Tensor) -> Tensor:
        """Lower bounds of z_y - z_k, shape (B, K-1); see :class:`robust.bounds.verifier.Verifier`."""
        with full_precision(y.device):
            box = in_bound_precision(network, box)
            graph = checked_graph(network, box.lower, weights_too=True)
            return self._in_parts(self._margins, graph, box, y)[0]

    def margin_range(self, network: nn.Module, box: Box, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the margins' bounds are at least and at most in exact arithmetic; both (B, K-1).

        None where the rounding of an operation is not known, and for the method ``crown``.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K), whose weights are taken as exact numbers.
            box: in the precision, float32 or float64, in which it is bounded, with sides ``x - budgets`` and
                ``x + budgets`` rounded to it.
            y: labels (B,).
        """
        if self.method == "crown":
            return None
        with full_precision(y.device), torch.no_grad():
            in_bound_precision(network, box)
            graph = checked_graph(network, box.lower, weights_too=True)
            few = graph.propagate(Box(*(side[:1] for side in box)))
            if not RoundingErrors(graph, few).known:
                return None
            low, high = self._in_parts(self._margin_range, graph, box, y)
            return low, high

    def cross_entropy(self, network: nn.Module, box: Box, y: Tensor, crown_weight: float = 1.0) -> Tensor:
        """Fused upper bound of the cross-entropy, shape (B,); see :class:`robust.bounds.verifier.Verifier`.

        The cross-entropy is log E with E = sum_k exp(z_k - z_y). U, an upper bound of E, mixes CROWN-IBP's and IBP's;
        both are scaled by exp(-shift). Source: Xu et al. 2020, Sec. 3.3 (loss fusion).
        """
        with full_precision(y.device):
            box = in_bound_precision(network, box)
            graph = checked_graph(network, box.lower, weights_too=False)
            values = _propagated(graph, box, y)
            margin = margin_interval(graph, values, y)
            highest = margin.center + margin.radius
            if crown_weight == 0:
                return reported(highest.logsumexp(-1), network, box.lower, INTERVALS)
            shift = highest.detach().amax(-1, keepdim=True)
            bound = fused_crown(graph, values, y, margin, shift)
            if crown_weight < 1:
                bound = crown_weight * bound + (1 - crown_weight) * (highest - shift).exp().sum(-1)
            return reported(bound.log() + shift.squeeze(-1), network, box.lower, INTERVALS + LINEAR_ROW)

    def _margins(self, graph: Graph, box: Box, y: Tensor) -> tuple[Tensor, ...]:
        values = _propagated(graph, box, y)
        if self.method == "crown":
            values = tightened(graph, values, self._rows_at_once(_largest(values), box))
        bounds = []
        if self.method != "crown-ibp":
            bounds.append(-self._highest(graph, values, y))
        if self.method != "ibp":
            parts = [graph.upper_bound(values, rows) for rows in self._rows(graph, values, y)]
            bounds.append(-torch.cat(parts, 1))
        return (bounds[0] if len(bounds) == 1 else torch.maximum(*bounds),)

    def _margin_range(self, graph: Graph, box: Box, y: Tensor) -> tuple[Tensor, ...]:
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

    def _highest(self, graph: Graph, values: list[Interval], y: Tensor) -> Tensor:
        """IBP's upper bounds of z_k - z_y for the classes k other than y, (B, K-1)."""
        hidden = values[graph.nodes[graph.output - 1].inputs[0]].center
        margin = margin_interval(graph, values, y, self._rows_at_once(hidden[0].numel(), values[0]))
        return (margin.center + margin.radius).gather(1, other_classes(y, margin.center.shape[1]))

    def _rows(self, graph: Graph, values: list[Interval], y: Tensor) -> Iterator[Tensor]:
        """Rows z_k - z_y on the logits (B, S, K), S classes k other than y in ascending order at a time."""
        logits = values[graph.output].center
        classes = torch.eye(logits.shape[1], dtype=logits.dtype, device=y.device)
        at_once = self._rows_at_once(_largest(values), values[0])
        for part in torch.split(other_classes(y, len(classes)), at_once, dim=1):
            yield classes[part] - classes[y][:, None]

    def _rows_at_once(self, size: int, box: Box | Interval) -> int:
        each = COPIES * size * len(box[0]) * box[0].element_size()
        return max(int(self.memory / each), 1)

    def _in_parts(
        self, bound: Callable[[Graph, Box, Tensor], tuple[Tensor, ...]], graph: Graph, box: Box, y: Tensor
    ) -> tuple[Tensor, ...]:
        """What ``bound`` gives of all images, of so many at a time as the memory allows where no gradient is wanted."""
        if torch.is_grad_enabled():
            return bound(graph, box, y)
        sizes = [interval.center.numel() for interval in graph.propagate(Box(*(side[:1] for side in box)))]
        images = max(int(self.memory / (COPIES * sum(sizes) * box.lower.element_size())), 1)
        parts = [
            bound(graph, Box(lower, upper), labels)
            for lower, upper, labels in zip(*(torch.split(each, images) for each in (*box, y)), strict=True)
        ]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _propagated(graph: Graph, box: Box, y: Tensor) -> list[Interval]:
    """The interval of every value; labels and box are checked."""
    check_labels(y, len(box.lower), graph.num_classes)
    values = graph.propagate(box)
    check_box(*values[0])
    return values


def _largest(values: list[Interval]) -> int:
    return max(value.center[0].numel() for value in values)
