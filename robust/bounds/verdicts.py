"""Certificates that hold in exact arithmetic: what rounding leaves open is bounded again in float64."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robust.bounds.cascade import Decision
from robust.bounds.verifier import Verifier, bound_precision
from robust.copies import copied
from robust.errors import SettingError
from robust.modes import keep_modes
from robust.threat_models import Region, ThreatModel


@runtime_checkable
class RangeVerifier(Verifier, Protocol):
    """A verifier that bounds its own rounding error; see :meth:`robust.bounds.FeedForwardVerifier.margin_range`."""

    def margin_range(self, network: nn.Module, box: Region, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Lower and upper limits of the margins' bounds in exact arithmetic, both (B, K-1); None: not known."""


@runtime_checkable
class DecidingVerifier(RangeVerifier, Protocol):
    """A verifier that decides without all margins; see :meth:`robust.bounds.FeedForwardVerifier.decide`."""

    def decide(self, network: nn.Module, box: Region, y: Tensor, *, rounding_safe: bool = True) -> Decision | None:
        """Which images are certified, and which cannot be, both (B,); None: not known."""


class Verdicts(NamedTuple):
    """Which examples are certified and which were bounded again in float64, bool (B,); their lowest margins (B,).

    Margins are the bounds as first computed, in logits; None where they were left out. ``seconds`` is the time in
    float64.
    """

    certified: Tensor
    recomputed: Tensor
    margins: Tensor | None
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
    margins: bool = True,
) -> Verdicts:
    """Whether the label wins on every perturbed image, by the verifier's bounds of the margins.

    In float32 a bound that rounds to above 0 may be below it. Where 0 lies within a bound of the rounding error, the
    margins are computed again in float64 and must be above 0 by more than that precision's error. Without such a bound
    (auto_LiRPA's; operations whose rounding is not known), all that float32 certifies is computed again in float64.

    >>> from robust.bounds import FeedForwardVerifier
    >>> from robust.threat_models import LinfBall
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x, y = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2), torch.tensor([0])
    >>> [certify(FeedForwardVerifier(), network, LinfBall(size), x, y).certified.tolist() for size in (0.2, 0.25, 0.3)]
    [[True], [False], [False]]

    Args:
        verifier: verifier that bounds the margins.
        network: classifier, (B, C, H, W) -> logits (B, K); its weights are taken as exact numbers.
        threat_model: set of perturbed images.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        rounding_safe: bound the rounding errors; without, a margin above 0 as computed is enough.
        margins: compute the margins of all images; without, the verdicts are the same, and linear bounds are faster.

    Raises:
        SettingError: if images, labels or budgets are out of their range, or the network is in half precision.
        UnsupportedLayerError: if the verifier cannot bound the network.
    """
    region = threat_model.region(x)
    if not margins and isinstance(verifier, DecidingVerifier) and _is_own(verifier, "decide"):
        decision = verifier.decide(network, region, y, rounding_safe=rounding_safe)
        if decision is not None:
            return _by_decision(verifier, network, threat_model, x, y, decision)
    if rounding_safe and isinstance(verifier, RangeVerifier) and _is_own(verifier, "margin_range"):
        ends = verifier.margin_range(network, region, y)
        if ends is not None:
            return _by_range(verifier, network, threat_model, x, y, ends)
    lowest = verifier.margins(network, region, y).amin(1)
    again = (lowest > 0) & (rounding_safe and bound_precision(network) != torch.float64)
    verdicts = Verdicts(lowest > 0, again, lowest)
    return _recomputed(verdicts, partial(_certified_precisely, verifier, network), threat_model, x, y)


def _is_own(verifier: Verifier, method: str) -> bool:
    """Whether a method belongs to the margins: a subclass that overrides the margins alone has none of its own."""
    owners = {next(kind for kind in type(verifier).__mro__ if name in vars(kind)) for name in ("margins", method)}
    return len(owners) == 1


def _by_decision(
    verifier: DecidingVerifier,
    network: nn.Module,
    threat_model: ThreatModel,
    x: Tensor,
    y: Tensor,
    decision: Decision,
) -> Verdicts:
    certified, refused = decision
    again = ~certified & ~refused & (x.dtype != torch.float64)

    def in_float64(box: Region, labels: Tensor) -> Tensor:
        precise = verifier.decide(network, box, labels)
        return _certified_precisely(verifier, network, box, labels) if precise is None else precise.certified

    return _recomputed(Verdicts(certified, again, None), in_float64, threat_model, x, y)


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
    again = ~certified & (high > 0).all(1) & (x.dtype != torch.float64)
    verdicts = Verdicts(certified, again, low.amin(1))
    return _recomputed(verdicts, partial(_certified_precisely, verifier, network), threat_model, x, y)


def _certified_precisely(verifier: Verifier, network: nn.Module, box: Region, y: Tensor) -> Tensor:
    """Whether bounds over a box in float64, less their rounding errors where these are known, are above 0; (B,)."""
    ends = None
    if isinstance(verifier, RangeVerifier) and _is_own(verifier, "margin_range"):
        ends = verifier.margin_range(network, box, y)
    margins = verifier.margins(double_copy(network, box), box, y) if ends is None else ends[0]
    return (margins > 0).all(1)


def double_copy(network: nn.Module, region: Region) -> nn.Module:
    """A copy of the network in float64, with the tensors that are plain attributes of its modules.

    Raises:
        SettingError: if it fails on the region's images: its code has other constants.
    """
    double = copied(network).double()
    for module in double.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.double())
    try:
        with keep_modes(double), torch.no_grad():
            double.eval()(region.lower.double())
    except RuntimeError as error:
        remedy = f"a copy in float64, by which certificates are checked, fails: {error}; register constants as buffers"
        raise SettingError("network", type(network).__name__, remedy) from error
    return double


def _recomputed(
    verdicts: Verdicts,
    in_float64: Callable[[Region, Tensor], Tensor],
    threat_model: ThreatModel,
    x: Tensor,
    y: Tensor,
) -> Verdicts:
    """The verdicts with those to be recomputed by ``in_float64`` of their boxes and labels."""
    again = verdicts.recomputed
    if not bool(again.any()):
        return verdicts
    start = time.perf_counter()
    box = threat_model.select(again).region(x[again].double())
    certified = verdicts.certified.masked_scatter(again, in_float64(box, y[again]))
    bool(certified.any())  # waits for the device
    return Verdicts(certified, again, verdicts.margins, time.perf_counter() - start)
