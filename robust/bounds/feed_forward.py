"""The own verifier: IBP, CROWN-IBP and the fused cross-entropy bound of feed-forward networks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.bounds.crown import upper_bound
from robust.bounds.interval import Interval, last_linear, margin_interval, propagate
from robust.bounds.layers import Layer, feed_forward
from robust.bounds.verifier import full_precision, in_bound_precision, other_classes
from robust.errors import require
from robust.threat_models import Box

Method = Literal["ibp", "crown-ibp", "tightest"]


class FeedForwardVerifier:
    """Bounds of an ``nn.Sequential`` of conv, linear, ReLU, flatten, average-pool, normalisation and batch-norm.

    Batch-norm always uses its evaluation statistics. See :class:`robust.bounds.verifier.Verifier` for the interface.

    Args:
        method: bound of the margins. ``ibp``: interval bound propagation, the last layer merged with the margins;
            ``crown-ibp``: one linear backward pass over IBP's intermediate intervals (Zhang et al. 2020), which costs
            about K times as much; ``tightest``: the larger of the two, margin by margin (neither dominates).

    Raises:
        SettingError: for another method.
        UnsupportedLayerError: when it meets a network with another layer.
    """

    def __init__(self, method: Method = "ibp") -> None:
        require(method in ("ibp", "crown-ibp", "tightest"), "method", method, "give ibp, crown-ibp or tightest")
        self.method = method

    def margins(self, network: nn.Module, box: Box, y: Tensor) -> Tensor:
        """Lower bounds of z_y - z_k, shape (B, K-1); see :class:`robust.bounds.verifier.Verifier`."""
        with full_precision(y.device):
            layers = feed_forward(network)
            last = last_linear(layers)
            inputs = propagate(layers, in_bound_precision(network, box))
            if self.method == "ibp":
                return _ibp_margins(last, inputs, y)
            crown = _crown_margins(layers, inputs, y, last.weight.shape[0])
            return crown if self.method == "crown-ibp" else torch.maximum(crown, _ibp_margins(last, inputs, y))

    def cross_entropy(self, network: nn.Module, box: Box, y: Tensor, crown_share: float = 1.0) -> Tensor:
        """Fused upper bound of the cross-entropy, shape (B,); see :class:`robust.bounds.verifier.Verifier`.

        The cross-entropy is log E with E = sum_k exp(z_k - z_y). U, an upper bound of E, mixes CROWN-IBP's and IBP's;
        both are scaled by exp(-shift). Source: Xu et al. 2020, Sec. 3.3 (loss fusion).
        """
        with full_precision(y.device):
            layers = feed_forward(network)
            last = last_linear(layers)
            inputs = propagate(layers, in_bound_precision(network, box))
            margin = margin_interval(last, inputs[-1], y)
            highest = margin.center + margin.radius
            if crown_share == 0:
                return highest.logsumexp(-1)
            shift = highest.detach().amax(-1, keepdim=True)
            bound = _fused_crown(layers, inputs, y, margin, shift)
            if crown_share < 1:
                bound = crown_share * bound + (1 - crown_share) * (highest - shift).exp().sum(-1)
            return bound.log() + shift.squeeze(-1)


def _ibp_margins(last: Layer, inputs: list[Interval], y: Tensor) -> Tensor:
    margin = margin_interval(last, inputs[-1], y)  # type: ignore[arg-type]
    others = other_classes(y, margin.center.shape[1])
    return -(margin.center + margin.radius).gather(1, others)


def _crown_margins(layers: list[Layer], inputs: list[Interval], y: Tensor, num_classes: int) -> Tensor:
    classes = torch.eye(num_classes, dtype=inputs[0].center.dtype, device=y.device)
    rows = classes[other_classes(y, num_classes)] - classes[y][:, None]
    return -upper_bound(layers, inputs, rows)


def _fused_crown(layers: list[Layer], inputs: list[Interval], y: Tensor, margin: Interval, shift: Tensor) -> Tensor:
    """CROWN-IBP's upper bound of E exp(-shift), (B,): each exp by its chord, then one row through the network."""
    lowest, highest = margin.center - margin.radius, margin.center + margin.radius
    width = (2 * margin.radius).clamp(min=1e-6)
    slope = (highest - shift).exp() * -torch.expm1(-width) / width
    intercept = ((lowest - shift).exp() - slope * lowest).sum(-1)
    of_label = F.one_hot(y, slope.shape[1]).to(slope.dtype)
    row = slope - of_label * slope.sum(-1, keepdim=True)  # on the logits: sum_k slope_k (z_k - z_y)
    bound = upper_bound(layers, inputs, row[:, None]).squeeze(1) + intercept
    # E >= exp(0), its own label's term: rounding must not push the bound below, where the log is undefined
    floor = (-shift.squeeze(-1)).exp().clamp(min=torch.finfo(bound.dtype).tiny)
    return torch.maximum(bound, floor)
