"""Attacks that look for the nearest image of another class, and the step back to the boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robust.attacks._checked import Checked, attacking, input_gradient
from robust.attacks.pgd import PGD
from robust.checks import check_label_shape, check_points
from robust.errors import require
from robust.losses import cross_entropy
from robust.progress import tracked
from robust.random import part
from robust.threat_models import L2Ball, diameter

# (network, x, y) -> images, those that keep class y being failures; Any, as jsonargparse would take a class_path for
# that of a subclass of Tensor
BoundaryAttack = Callable[[nn.Module, Tensor, Tensor], Any]


class FGSMGrid:
    """The fast gradient sign method at growing sizes, until an image changes class (Goodfellow et al. 2015).

    Args:
        epsilons: sizes in (0, 1], rising; by default 0.05, 0.1, ..., 1.

    Raises:
        SettingError: if they are not.
    """

    def __init__(self, epsilons: list[float] | None = None) -> None:
        epsilons = [k / 20 for k in range(1, 21)] if epsilons is None else epsilons
        rising = len(epsilons) > 0 and epsilons == sorted(set(epsilons)) and epsilons[0] > 0 and epsilons[-1] <= 1
        require(rising, "epsilons", epsilons, "give rising sizes in (0, 1]")
        self.epsilons = epsilons

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The images of the first size that succeeds (B, C, H, W); see :data:`BoundaryAttack`."""
        with attacking(network, "eval", x, y) as (checked, x, y):
            gradient, _, _ = input_gradient(checked, cross_entropy, x, y, 1)
            x_adv, remaining = x.clone(), torch.arange(len(x), device=x.device)
            for epsilon in tracked(self.epsilons):
                at = (x[remaining] + epsilon * gradient[remaining].sign()).clamp(0.0, 1.0)
                with part(remaining):
                    flipped = checked(at).argmax(1) != y[remaining]
                x_adv[remaining[flipped]] = at[flipped]
                remaining = remaining[~flipped]
                if len(remaining) == 0:
                    break
            return x_adv


class GrowingPGD:
    """PGD in l2 balls of doubled radius, until an image changes class or the ball holds all images.

    Args:
        first_radius: radius of the first ball, in l2 over all pixels.
        steps: number of PGD steps in each ball, each 2.5 / steps of the radius, from one random start.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(self, first_radius: float = 0.5, steps: int = 40) -> None:
        require(first_radius > 0, "first_radius", first_radius, "give a positive distance")
        self.first_radius = first_radius
        self.attack = PGD(steps)

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The images of the first ball that succeeds (B, C, H, W); see :data:`BoundaryAttack`."""
        with attacking(network, "eval", x, y) as (checked, x, y):
            x_adv, remaining = x.clone(), torch.arange(len(x), device=x.device)
            for radius in tracked(self._radii(diameter(tuple(x.shape[1:])))):
                with part(remaining):
                    at = self.attack.ascend(checked, L2Ball(radius), x[remaining], y[remaining], cross_entropy)
                    flipped = checked(at).argmax(1) != y[remaining]
                x_adv[remaining[flipped]] = at[flipped]
                remaining = remaining[~flipped]
                if len(remaining) == 0:
                    break
            return x_adv

    def _radii(self, largest: float) -> list[float]:
        """Doubled radii; the last ball holds all images."""
        radii = [self.first_radius]
        while radii[-1] < largest:
            radii.append(2 * radii[-1])
        return radii


def to_boundary(network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, halvings: int = 25) -> tuple[Tensor, Tensor]:
    """The images moved back along the segment to ``x`` until just before they would be of class ``y`` again.

    Bisection finds a crossing, the only one if there is but one; the flipped end of the last interval is returned.
    Source: general robustness framework, eq. 14, whose epsilon is the fraction of the segment.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x, y = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2), torch.tensor([0])
    >>> points, distance = to_boundary(network, x, x_adv=x.flip(3), y=y)
    >>> points, distance  # half of the way
    (tensor([[[[0.5000, 0.5000]]]]), tensor([0.3536]))

    Args:
        network: classifier in the mode in which it is judged.
        x: images (B, C, H, W) of class ``y``.
        x_adv: images found, same shape; those of class ``y`` are failures.
        y: classes (B,) that the network gives ``x``.
        halvings: number of bisections of the segment.

    Returns:
        Points (B, C, H, W), of a class other than ``y`` except for failures; and their distance (B,) from ``x`` in l2,
        infinite for failures.

    Raises:
        SettingError: if images, classes or logits are not as said.
        NonFiniteLogitsError: if logits are NaN or infinite.
    """
    check_points(x_adv, x)
    check_label_shape(y, len(x))
    checked = Checked(network, y)
    shape = (-1, *[1] * (x.dim() - 1))

    def at(fraction: Tensor) -> Tensor:
        return torch.lerp(x, x_adv, fraction.view(shape)).clamp_(0.0, 1.0)  # rounding may leave the range

    low, high = torch.zeros_like(x.flatten(1)[:, 0]), torch.ones_like(x.flatten(1)[:, 0])
    flips = checked(at(high)).argmax(1) != y
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        flipped = checked(at(middle)).argmax(1) != y
        low, high = torch.where(flipped, low, middle), torch.where(flipped, middle, high)
    checked.finish()
    points = torch.where(flips.view(shape), at(high), x_adv)
    distance = (points - x).flatten(1).norm(dim=1)
    return points, torch.where(flips, distance, torch.inf)
