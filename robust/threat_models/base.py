"""Interface of every threat model, as attacks, bounds and evaluations use it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from robust.noise_fitting import LinfFit

Norm = Literal["linf", "l2", "l1"]


class Box(NamedTuple):
    """Per-pixel interval ``lower <= x' <= upper``; both of shape (B, C, H, W)."""

    lower: Tensor
    upper: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Box:
        """The box with each side replaced by ``function`` of it, such as a part of the batch."""
        return Box(function(self.lower), function(self.upper))


class CutBall(NamedTuple):
    """The images x' of a box with ``|x' - center|_p <= epsilon``: a ball cut to [0, 1].

    >>> x = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2)
    >>> ball = CutBall.around(x, torch.tensor([0.25]), "l2")
    >>> ball.lower.flatten().tolist(), ball.upper.flatten().tolist()
    ([0.0, 0.25], [0.25, 0.75])

    Args:
        lower: (B, C, H, W).
        upper: (B, C, H, W).
        center: images in the box, (B, C, H, W).
        epsilon: radius of each example's ball, (B,), with a gradient where it is learned.
        norm: ``l2`` or ``l1``.
    """

    lower: Tensor
    upper: Tensor
    center: Tensor
    epsilon: Tensor
    norm: Norm

    @classmethod
    def around(cls, x: Tensor, epsilon: Tensor, norm: Norm) -> CutBall:
        """The balls of radii ``epsilon`` (B,) around images ``x`` (B, C, H, W), cut to [0, 1]."""
        widths = epsilon[:, None, None, None]
        return cls((x - widths).clamp(min=0.0), (x + widths).clamp(max=1.0), x, epsilon, norm)

    def map(self, function: Callable[[Tensor], Tensor]) -> CutBall:
        """The balls with each tensor replaced by ``function`` of it, such as a part of the batch."""
        lower, upper, center, epsilon = map(function, (self.lower, self.upper, self.center, self.epsilon))
        return CutBall(lower, upper, center, epsilon, self.norm)


Region = Box | CutBall


class ThreatModel(Protocol):
    """The set of perturbed images that an attack searches and a bound encloses.

    Those here raise :class:`robust.errors.SettingError` where ``x`` is no batch of images in [0, 1], and
    :meth:`project` where ``x_adv`` has another shape or is not finite.
    """

    @property
    def norm(self) -> Norm | None:
        """The norm of which it is a ball; None where pixels have budgets of their own."""

    @property
    def epsilon(self) -> float | None:
        """The ball's radius; None where there is no norm."""

    @property
    def radius(self) -> Tensor | float:
        """Size of the largest perturbation, a number or budgets that broadcast to (B, C, H, W)."""

    @property
    def is_box(self) -> bool:
        """Whether every image in :meth:`interval` is a perturbed image; :attr:`radius` is then a pixel's budget."""

    @property
    def per_pixel(self) -> Tensor | None:
        """Budgets of single pixels, with four dimensions that broadcast to (B, C, H, W); None where there are none."""

    def interval(self, x: Tensor) -> Box:
        """Smallest per-pixel box in [0, 1] that holds every perturbed image of ``x`` (B, C, H, W)."""

    def region(self, x: Tensor) -> Region:
        """The set of all perturbed images of ``x`` (B, C, H, W), over which bounds are computed."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Nearest perturbed image of ``x`` to ``x_adv`` in the Euclidean norm; both (B, C, H, W)."""

    def sample(self, x: Tensor) -> Tensor:
        """Draw one perturbed image for each example of ``x`` (B, C, H, W)."""

    def steepest_direction(
        self, gradient: Tensor, fraction: Tensor | float = 1.0, x_adv: Tensor | None = None
    ) -> Tensor:
        """Direction of steepest ascent, of size 1 in the threat model's norm, (B, C, H, W).

        Args:
            gradient: gradient of the loss, (B, C, H, W).
            fraction: fraction of the pixels that a step in the l1 norm moves, a number or (B,); other norms move all.
            x_adv: images from which the step begins, (B, C, H, W). In l1, where few pixels get the whole step, those
                that would leave [0, 1] are then left out; other norms do not need it.
        """

    def fit_noise(self, x: Tensor, noise: Tensor, linf: LinfFit = "tanh") -> Tensor:
        """``x`` plus any noise fitted to the ball, differentiable to the noise; all (B, C, H, W).

        Args:
            x: images.
            noise: noise of any size.
            linf: method of the fit in linf, of several; see :func:`robust.noise_fitting.fit_linf`.

        Raises:
            TypeError: if the threat model is not a ball of a norm.
        """

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each example is a perturbed image of ``x`` up to rounding; bool (B,)."""

    def lies_in(self, other: ThreatModel, batch: int) -> Tensor:
        """For each example, whether this set is certainly contained in ``other``; bool (batch,)."""

    def select(self, chosen: Tensor) -> ThreatModel:
        """The threat model of the examples ``chosen``, indices or mask, of its batch."""


def diameter(image_shape: tuple[int, ...]) -> float:
    """Diameter sqrt(m) of the cube [0, 1]^m of all images with m pixels and channels: the largest l2 distance.

    >>> diameter((1, 28, 28))
    28.0
    """
    return math.sqrt(math.prod(image_shape))


def pixel_lengths(x_adv: Tensor, x: Tensor) -> Tensor:
    """Distance by which each pixel was moved, less a tolerance for rounding: 4 units in its last place."""
    rounding = 4 * torch.finfo(x.dtype).eps * torch.maximum(x_adv.abs(), x)
    return ((x_adv - x).abs() - rounding).clamp_(min=0.0)
