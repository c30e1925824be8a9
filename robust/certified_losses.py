"""Losses of certified training between that of an attack, which is too low, and that of a bound, which is too high.

Both are loose for a network that is to be certified: what trains it best lies between them (De Palma et al. 2024,
"Expressive losses for verified robustness via convex combinations"). Each loss here has one weight, 0 for the attack's
loss and 1 for the bound's. Attacks search the budgets; what they find moves with them, so that learned budgets have a
gradient from both parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.attacks import FGSM
from robust.bounds import Verifier
from robust.bounds.clean_statistics import without_gradient
from robust.bounds.verifier import other_classes
from robust.errors import require
from robust.evaluation import Attack
from robust.modes import in_mode
from robust.passes import INTERVALS, LINEAR_ROW, reported
from robust.threat_models import Box, PixelBox


class CertifiedLoss(ABC):
    """A training loss of images and their budgets, differentiable to the weights and to the budgets.

    Args:
        weight: weight of the bound, in [0, 1].
        attack: attack that finds the image, called as ``attack(network, budgets, x, y)``. By default one step from a
            random point of the box to a corner.

    Raises:
        SettingError: if the weight is out of its range.
    """

    def __init__(self, weight: float = 0.5, attack: Attack | None = None) -> None:
        require(0 <= weight <= 1, "weight", weight, "give a weight of the bound in [0, 1]")
        self.weight = weight
        self.attack = FGSM(step_size=2.0, random_start=True) if attack is None else attack

    @abstractmethod
    def __call__(
        self, network: nn.Module, verifier: Verifier, budgets: PixelBox, x: Tensor, y: Tensor, crown_weight: float
    ) -> Tensor:
        """Loss of each example, shape (B,).

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            verifier: verifier that bounds the cross-entropy.
            budgets: budgets around the images.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
            crown_weight: weight of the CROWN-IBP bound; see :meth:`Verifier.cross_entropy`.
        """


class SABR(CertifiedLoss):
    """The bound's loss over a small box near an attack's image (Mueller et al. 2023: SABR).

    The small box has ``weight`` times the sides of the whole one (there: lambda), lies inside it, and its center is as
    near to the attack's image as that allows.

    >>> from robust.bounds import FeedForwardVerifier
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x, y, box = torch.tensor([0.5, 0.5]).view(1, 1, 1, 2), torch.tensor([0]), PixelBox(torch.tensor(0.25))
    >>> torch.log1p(torch.tensor(0.5).exp())  # the attack finds the worst corner: a difference of logits of 1/2
    tensor(0.9741)
    >>> SABR(0.5)(network, FeedForwardVerifier(), box, x, y, crown_weight=0.0).detach()  # the small box has that corner
    tensor([0.9741])
    """

    def __call__(  # noqa: D102
        self, network: nn.Module, verifier: Verifier, budgets: PixelBox, x: Tensor, y: Tensor, crown_weight: float
    ) -> Tensor:
        box = budgets.interval(x)
        small = small_box(box, _position(self.attack, network, budgets, x, y), self.weight)
        return verifier.cross_entropy(network, small, y, crown_weight)


class MTLIBP(CertifiedLoss):
    """The mean of the attack's and the bound's cross-entropy (De Palma et al. 2024: MTL-IBP, weight alpha)."""

    def __call__(  # noqa: D102
        self, network: nn.Module, verifier: Verifier, budgets: PixelBox, x: Tensor, y: Tensor, crown_weight: float
    ) -> Tensor:
        box = budgets.interval(x)
        attacked = _logits(network, _at(box, _position(self.attack, network, budgets, x, y)))
        bound = verifier.cross_entropy(network, box, y, crown_weight)
        return (1 - self.weight) * F.cross_entropy(attacked, y, reduction="none") + self.weight * bound


class CCIBP(CertifiedLoss):
    """The cross-entropy of the mean of the attack's and the bound's margins (De Palma et al. 2024: CC-IBP).

    Its bounds are the margins of the verifier's method, in float32; ``crown_weight`` has no effect. By intervals it is
    never above :class:`MTLIBP` of the same weight and attack, for the cross-entropy is convex in the margins.
    """

    def __call__(  # noqa: D102
        self, network: nn.Module, verifier: Verifier, budgets: PixelBox, x: Tensor, y: Tensor, crown_weight: float
    ) -> Tensor:
        box = budgets.interval(x)
        logits = _logits(network, _at(box, _position(self.attack, network, budgets, x, y)))
        attacked = logits.gather(1, y[:, None]) - logits.gather(1, other_classes(y, logits.shape[1]))
        rows = 0 if getattr(verifier, "method", "ibp") == "ibp" else attacked.shape[1]
        bounds = reported(verifier.margins(network, box, y), network, x, INTERVALS + rows * LINEAR_ROW)
        margins = (1 - self.weight) * attacked + self.weight * bounds
        return F.pad(-margins, (1, 0)).logsumexp(1)


def small_box(box: Box, position: Tensor, weight: float) -> Box:
    """The box of ``weight`` times the sides inside a box whose center is nearest to a point.

    >>> box = Box(torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3))
    >>> small = small_box(box, torch.tensor([0.0, 0.5, 0.75]).view(1, 1, 1, 3), 0.5)
    >>> small.lower.flatten(), small.upper.flatten()
    (tensor([0.0000, 0.2500, 0.5000]), tensor([0.5000, 0.7500, 1.0000]))

    Args:
        box: sides (B, C, H, W).
        position: position of the point between the sides, from 0 at the lower to 1 at the upper; (B, C, H, W).
        weight: ratio of the small box's sides to the box's, in [0, 1].
    """
    lowest = (position - weight / 2).clamp(0.0, 1.0 - weight)
    return Box(_at(box, lowest), _at(box, lowest + weight))


def _position(attack: Attack, network: nn.Module, budgets: PixelBox, x: Tensor, y: Tensor) -> Tensor:
    """Position of the attack's images in the box, from 0 at the lower to 1 at the upper sides, without gradient."""
    with without_gradient(network):
        x_adv: Tensor = attack(network, budgets, x, y)
    lower, upper = (side.detach() for side in budgets.interval(x))
    width = (upper - lower).clamp_min(torch.finfo(x.dtype).tiny)
    return ((x_adv.detach() - lower) / width).clamp(0.0, 1.0)


def _at(box: Box, position: Tensor) -> Tensor:
    """The images at a position in the box, in it despite rounding, with its gradient."""
    images: Tensor = torch.lerp(box.lower, box.upper, position)
    return torch.minimum(torch.maximum(images, box.lower), box.upper)


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    """Logits by the statistics by which bounds normalise."""
    with without_gradient(network), in_mode(network, "eval"):
        logits: Tensor = network(x)
    return logits
