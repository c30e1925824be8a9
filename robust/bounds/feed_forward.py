"""The own verifier: IBP, CROWN-IBP and the fused cross-entropy bound of feed-forward networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.bounds.agreement import checked_layers
from robust.bounds.crown import upper_bound, upper_bound_and_error
from robust.bounds.interval import Interval, last_linear, margin_interval, propagate
from robust.bounds.layers import Layer, LinearLayer
from robust.bounds.rounding import RoundingErrors
from robust.bounds.sequential import feed_forward
from robust.bounds.verifier import check_box, full_precision, in_bound_precision, other_classes
from robust.checks import check_labels
from robust.errors import require
from robust.passes import INTERVALS, LINEAR_ROW, reported
from robust.threat_models import Box

Method = Literal["ibp", "crown-ibp", "tightest"]
COPIES = 6  # tensors of the largest activation's size that a pass holds at a time, about


class FeedForwardVerifier:
    """Bounds of an ``nn.Sequential`` of conv, linear, ReLU, flatten, average-pool, normalisation and batch-norm.

    Batch-norm always uses its evaluation statistics. What the bounds take the network for is compared with its forward
    pass, once for each network and again after a change. See :class:`robust.bounds.verifier.Verifier`.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x, y = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2), torch.tensor([0])
    >>> box = Box(x - 0.125, x + 0.125)
    >>> FeedForwardVerifier("ibp").margins(network, box, y).detach()  # x_1 - x_2 is 1/2, less twice 1/8
    tensor([[0.2500]])
    >>> FeedForwardVerifier().cross_entropy(network, box, y).detach()  # log(1 + exp(-1/4))
    tensor([0.5759])

    Args:
        method: bound of the margins. ``ibp``: interval bound propagation, the last layer merged with the margins;
            ``crown-ibp``: one linear backward pass over IBP's intermediate intervals (Zhang et al. 2020), which costs
            about K times as much; ``tightest``: the larger of the two, margin by margin (neither dominates).
        memory: bytes that margins without gradient may take, about; images and classes go through in parts of that.

    Raises:
        SettingError: for another method, or a memory that is not positive.
        UnsupportedLayerError: when it meets a network with another layer, or one that computes something else.
    """

    def __init__(self, method: Method = "ibp", memory: float = 2**30) -> None:
        require(method in ("ibp", "crown-ibp", "tightest"), "method", method, "give ibp, crown-ibp or tightest")
        require(memory > 0, "memory", memory, "give a positive number of bytes")
        self.method = method
        self.memory = memory

    def margins(self, network: nn.Module, box: Box, y: Tensor) -> Tensor:
        """Lower bounds of z_y - z_k, shape (B, K-1); see :class:`robust.bounds.verifier.Verifier`."""
        with full_precision(y.device):
            box = in_bound_precision(network, box)
            layers = checked_layers(network, box.lower, weights_too=True)
            return self._in_parts(self._margins, layers, box, y)[0]

    def margin_range(self, network: nn.Module, box: Box, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the margins' bounds are at least and at most in exact arithmetic; both (B, K-1).

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K), whose weights are taken as exact numbers.
            box: in the precision, float32 or float64, in which it is bounded, with sides ``x - budgets`` and
                ``x + budgets`` rounded to it.
            y: labels (B,).
        """
        with full_precision(y.device), torch.no_grad():
            if box.lower.dtype == in_bound_precision(network, box).lower.dtype:
                layers = checked_layers(network, box.lower, weights_too=True)
            else:  # its forward pass has another precision, and nothing to compare with
                layers = feed_forward(network, box.lower.dtype)
            low, high = self._in_parts(self._margin_range, layers, box, y)
            return low, high

    def cross_entropy(self, network: nn.Module, box: Box, y: Tensor, crown_weight: float = 1.0) -> Tensor:
        """Fused upper bound of the cross-entropy, shape (B,); see :class:`robust.bounds.verifier.Verifier`.

        The cross-entropy is log E with E = sum_k exp(z_k - z_y). U, an upper bound of E, mixes CROWN-IBP's and IBP's;
        both are scaled by exp(-shift). Source: Xu et al. 2020, Sec. 3.3 (loss fusion).
        """
        with full_precision(y.device):
            box = in_bound_precision(network, box)
            layers = checked_layers(network, box.lower, weights_too=False)
            last, inputs = _propagated(layers, box, y)
            margin = margin_interval(last, inputs[-1], y)
            highest = margin.center + margin.radius
            if crown_weight == 0:
                return reported(highest.logsumexp(-1), network, box.lower, INTERVALS)
            shift = highest.detach().amax(-1, keepdim=True)
            bound = _fused_crown(layers, inputs, y, margin, shift)
            if crown_weight < 1:
                bound = crown_weight * bound + (1 - crown_weight) * (highest - shift).exp().sum(-1)
            return reported(bound.log() + shift.squeeze(-1), network, box.lower, INTERVALS + LINEAR_ROW)

    def _margins(self, layers: list[Layer], box: Box, y: Tensor) -> tuple[Tensor, ...]:
        last, inputs = _propagated(layers, box, y)
        bounds = []
        if self.method != "crown-ibp":
            bounds.append(-_highest(last, inputs, y, self._rows_at_once(last.weight[0].numel(), box)))
        if self.method != "ibp":
            parts = [upper_bound(layers, inputs, rows) for rows in self._rows(last, inputs, y)]
            bounds.append(-torch.cat(parts, 1))
        return (bounds[0] if len(bounds) == 1 else torch.maximum(*bounds),)

    def _margin_range(self, layers: list[Layer], box: Box, y: Tensor) -> tuple[Tensor, ...]:
        last, inputs = _propagated(layers, box, y)
        errors = RoundingErrors(layers, inputs)
        ranges = []
        if self.method != "crown-ibp":
            margins = -_highest(last, inputs, y, self._rows_at_once(last.weight[0].numel(), box))
            error = errors.of_margins(y).gather(1, other_classes(y, len(last.weight)))
            ranges.append((margins - error, margins + error))
        if self.method != "ibp":
            parts = [upper_bound_and_error(layers, inputs, rows, errors) for rows in self._rows(last, inputs, y)]
            bound, error = (torch.cat(each, 1) for each in zip(*parts, strict=True))
            ranges.append((-bound - error, -bound + error))
        if len(ranges) == 1:
            return ranges[0]
        return tuple(torch.maximum(*ends) for ends in zip(*ranges, strict=True))

    def _rows(self, last: LinearLayer, inputs: list[Interval], y: Tensor) -> Iterator[Tensor]:
        """Rows z_k - z_y on the logits (B, S, K), S classes k other than y in ascending order at a time."""
        classes = torch.eye(len(last.weight), dtype=last.weight.dtype, device=y.device)
        largest = max(interval.center[0].numel() for interval in inputs)
        for part in torch.split(other_classes(y, len(classes)), self._rows_at_once(largest, inputs[0]), dim=1):
            yield classes[part] - classes[y][:, None]

    def _rows_at_once(self, size: int, box: Box | Interval) -> int:
        each = COPIES * size * len(box[0]) * box[0].element_size()
        return max(int(self.memory / each), 1)

    def _in_parts(
        self, bound: Callable[[list[Layer], Box, Tensor], tuple[Tensor, ...]], layers: list[Layer], box: Box, y: Tensor
    ) -> tuple[Tensor, ...]:
        """What ``bound`` gives of all images, of so many at a time as the memory allows where no gradient is wanted."""
        if torch.is_grad_enabled():
            return bound(layers, box, y)
        sizes = [interval.center.numel() for interval in propagate(layers, Box(*(side[:1] for side in box)))]
        images = max(int(self.memory / (COPIES * sum(sizes) * box.lower.element_size())), 1)
        parts = [
            bound(layers, Box(lower, upper), labels)
            for lower, upper, labels in zip(*(torch.split(each, images) for each in (*box, y)), strict=True)
        ]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _propagated(layers: list[Layer], box: Box, y: Tensor) -> tuple[LinearLayer, list[Interval]]:
    """The last layer and the interval at every layer's input; labels and box are checked."""
    last = last_linear(layers)
    check_labels(y, len(box.lower), len(last.weight))
    inputs = propagate(layers, box)
    check_box(*inputs[0])
    return last, inputs


def _highest(last: LinearLayer, inputs: list[Interval], y: Tensor, classes_at_once: int) -> Tensor:
    """IBP's upper bounds of z_k - z_y for the classes k other than y, (B, K-1)."""
    margin = margin_interval(last, inputs[-1], y, classes_at_once)
    return (margin.center + margin.radius).gather(1, other_classes(y, margin.center.shape[1]))


def _fused_crown(layers: list[Layer], inputs: list[Interval], y: Tensor, margin: Interval, shift: Tensor) -> Tensor:
    """CROWN-IBP's upper bound of E exp(-shift), (B,): each exp by its chord, then one row through the network."""
    lowest, highest = margin.center - margin.radius, margin.center + margin.radius
    width = 2 * margin.radius
    guarded = width.clamp(min=1e-6)  # the chord of a wider interval from the same lower end lies above
    slope = (highest - shift + (guarded - width)).exp() * -torch.expm1(-guarded) / guarded
    intercept = ((lowest - shift).exp() - slope * lowest).sum(-1)
    of_label = F.one_hot(y, slope.shape[1]).to(slope.dtype)
    row = slope - of_label * slope.sum(-1, keepdim=True)  # on the logits: sum_k slope_k (z_k - z_y)
    bound = upper_bound(layers, inputs, row[:, None]).squeeze(1) + intercept
    # E >= exp(0), its own label's term: rounding must not push the bound below, where the log is undefined
    floor = (-shift.squeeze(-1)).exp().clamp(min=torch.finfo(bound.dtype).tiny)
    return torch.maximum(bound, floor)
