"""Certificates that hold in exact arithmetic: what rounding leaves open is bounded again in float64."""

from __future__ import annotations

import copy
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robust.bounds.verifier import Verifier, bound_precision
from robust.threat_models import Box, ThreatModel


@runtime_checkable
class RangeVerifier(Protocol):
    """A verifier that bounds its own rounding error; see :meth:`robust.bounds.FeedForwardVerifier.margin_range`."""

    def margin_range(self, network: nn.Module, box: Box, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the margins' bounds are at least and at most in exact arithmetic; both (B, K-1)."""


class Verdicts(NamedTuple):
    """Which examples are certified, and which were bounded again in float64 to find out; both bool (B,)."""

    certified: Tensor
    recomputed: Tensor


@torch.no_grad()
def certify(
    verifier: Verifier,
    network: nn.Module,
    threat_model: ThreatModel,
    x: Tensor,
    y: Tensor,
    *,
    rounding_safe: bool = True,
) -> Verdicts:
    """Whether the label wins on every perturbed image, by the verifier's bounds of the margins.

    In float32 a bound that rounds to above 0 may be below it. Where 0 lies within a bound of the rounding error, the
    margins are computed again in float64, from the threat model on, and must be above 0 by more than that precision's
    error. For a verifier without such a bound (auto_LiRPA's), all that float32 certifies is computed again in float64
    and must be above 0, up to that precision's own rounding.

    Args:
        verifier: gives the margins.
        network: classifier, (B, C, H, W) -> logits (B, K); its weights are taken as exact numbers.
        threat_model: the perturbed images.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        rounding_safe: bound the rounding errors; without, a margin above 0 as computed is enough.

    Raises:
        SettingError: if images, labels or budgets are out of their range, or the network is in half precision.
        UnsupportedLayerError: if the verifier cannot bound the network.
    """
    if not rounding_safe:
        certified = (verifier.margins(network, threat_model.interval(x), y) > 0).all(1)
        return Verdicts(certified, torch.zeros_like(certified))
    if isinstance(verifier, RangeVerifier):
        return _by_range(verifier, network, threat_model, x, y)
    certified = (verifier.margins(network, threat_model.interval(x), y) > 0).all(1)
    again = certified & (bound_precision(network) != torch.float64)
    if bool(again.any()):
        box = threat_model.select(again).interval(x[again].double())
        margins = verifier.margins(copy.deepcopy(network).double(), box, y[again])
        certified = certified.masked_scatter(again, (margins > 0).all(1))
    return Verdicts(certified, again)


def _by_range(verifier: RangeVerifier, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Verdicts:
    low, high = verifier.margin_range(network, threat_model.interval(x), y)
    certified = (low > 0).all(1)
    again = ~certified & (high > 0).all(1) & (bound_precision(network) != torch.float64)
    if bool(again.any()):
        low, _ = verifier.margin_range(network, threat_model.select(again).interval(x[again].double()), y[again])
        certified = certified.masked_scatter(again, (low > 0).all(1))
    return Verdicts(certified, again)
