"""Certificates that hold in exact arithmetic: what rounding leaves open is bounded again in float64."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robust.bounds.verifier import Verifier, bound_precision
from robust.threat_models import Box, ThreatModel


@runtime_checkable
class RangeVerifier(Protocol):
    """A verifier that bounds its own rounding error; see :meth:`robust.bounds.FeedForwardVerifier.margin_range`."""

    def margin_range(self, network: nn.Module, box: Box, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the margins' bounds are at least and at most in exact arithmetic, both (B, K-1); None: not known."""


class Verdicts(NamedTuple):
    """Which examples are certified and which were bounded again in float64, bool (B,); their lowest margins (B,).

    Margins are the bounds as first computed, in logits. ``seconds`` is the time in float64.
    """

    certified: Tensor
    recomputed: Tensor
    margins: Tensor
    seconds: float = 0.0


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
    error. Without such a bound (auto_LiRPA's; operations whose rounding is not known), all that float32 certifies
    is computed again in float64 and must be above 0, up to that precision's own rounding.

    >>> from robust.bounds import FeedForwardVerifier
    >>> from robust.threat_models import LinfBall
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x, y = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2), torch.tensor([0])
    >>> [certify(FeedForwardVerifier(), network, LinfBall(size), x, y).certified.tolist() for size in (0.2, 0.25, 0.3)]
    [[True], [False], [False]]

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
        lowest = verifier.margins(network, threat_model.interval(x), y).amin(1)
        return Verdicts(lowest > 0, torch.zeros_like(lowest, dtype=torch.bool), lowest)
    if isinstance(verifier, RangeVerifier) and _owner(verifier, "margins") is _owner(verifier, "margin_range"):
        ends = verifier.margin_range(network, threat_model.interval(x), y)
        if ends is not None:
            return _by_range(verifier, network, threat_model, x, y, ends)
    lowest = verifier.margins(network, threat_model.interval(x), y).amin(1)
    certified = lowest > 0
    again = certified & (bound_precision(network) != torch.float64)

    def in_float64(box: Box, labels: Tensor) -> Tensor:
        return verifier.margins(copy.deepcopy(network).double(), box, labels)

    return _recomputed(Verdicts(certified, again, lowest), in_float64, threat_model, x, y)


def _owner(verifier: Verifier, method: str) -> type:
    """The class that defines a method: a subclass that overrides the margins alone has no range of its own."""
    return next(kind for kind in type(verifier).__mro__ if method in vars(kind))


def _by_range(
    verifier: RangeVerifier,
    network: nn.Module,
    threat_model: ThreatModel,
    x: Tensor,
    y: Tensor,
    ends: tuple[Tensor, ...],
) -> Verdicts:
    low, high = ends
    certified = (low > 0).all(1)
    again = ~certified & (high > 0).all(1) & (bound_precision(network) != torch.float64)

    def in_float64(box: Box, labels: Tensor) -> Tensor:
        precise = verifier.margin_range(network, box, labels)
        assert precise is not None  # as in float32
        return precise[0]

    return _recomputed(Verdicts(certified, again, low.amin(1)), in_float64, threat_model, x, y)


def _recomputed(
    verdicts: Verdicts,
    margins: Callable[[Box, Tensor], Tensor],
    threat_model: ThreatModel,
    x: Tensor,
    y: Tensor,
) -> Verdicts:
    """The verdicts with those to be recomputed by ``margins`` of their boxes in float64."""
    again = verdicts.recomputed
    if not bool(again.any()):
        return verdicts
    start = time.perf_counter()
    box = threat_model.select(again).interval(x[again].double())
    certified = verdicts.certified.masked_scatter(again, (margins(box, y[again]) > 0).all(1))
    bool(certified.any())  # waits for the device
    return Verdicts(certified, again, verdicts.margins, time.perf_counter() - start)
