"""Threat models: which perturbed images there are around an image.

Images are float tensors in [0, 1] of shape (B, C, H, W); every epsilon and budget is in units of [0, 1].
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from robust.checks import check_budgets, check_images, check_points, checked_before
from robust.errors import require
from robust.projections import TINY, largest, moved, split_perturbation
from robust.random import exponential_like, rand, rand_like, randn_like

Norm = Literal["linf", "l2", "l1"]


class Box(NamedTuple):
    """Per-pixel interval ``lower <= x' <= upper``; both of shape (B, C, H, W)."""

    lower: Tensor
    upper: Tensor


class ThreatModel(Protocol):
    """What an attack searches and a bound encloses.

    Those here raise :class:`robust.errors.SettingError` where ``x`` is no batch of images in [0, 1], and
    :meth:`project` where ``x_adv`` has another shape or is not finite.
    """

    @property
    def radius(self) -> Tensor | float:
        """Size of the largest perturbation: a number, or budgets that broadcast to (B, C, H, W)."""

    def interval(self, x: Tensor) -> Box:
        """Smallest per-pixel box in [0, 1] that holds every perturbed image of ``x`` (B, C, H, W)."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Nearest perturbed image of ``x`` to ``x_adv`` in the Euclidean norm; both (B, C, H, W)."""

    def sample(self, x: Tensor) -> Tensor:
        """Draw one perturbed image for each example of ``x`` (B, C, H, W)."""

    def direction(self, gradient: Tensor, share: Tensor | float) -> Tensor:
        """Direction of steepest ascent, of size 1 in the threat model's norm; both (B, C, H, W).

        ``share`` of the pixels that a step in the l1 norm moves, a number or (B,); other norms move all of them.
        """

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each example is a perturbed image of ``x`` up to rounding; bool (B,)."""

    def select(self, chosen: Tensor) -> ThreatModel:
        """The threat model of the examples ``chosen``, indices or mask, of its batch."""


class PixelBox:
    """Non-uniform budgets: |x'_i - x_i| <= budgets_i, cut to [0, 1] (contextual budgets, Sec. 3.1).

    Args:
        budgets: non-negative tensor that broadcasts to (B, C, H, W). It stays in the graph: the box is
            differentiable to the budgets, with gradient zero where the box is cut by [0, 1].

    Raises:
        SettingError: if a budget is negative or not finite; on use, if they do not broadcast to the images.
    """

    def __init__(self, budgets: Tensor) -> None:
        check_budgets(budgets)
        self.budgets = budgets

    def _check_shape(self, x: Tensor) -> None:
        """Budgets of more examples or pixels would enlarge the images without a word."""
        shape, sizes = tuple(self.budgets.shape), zip(reversed(self.budgets.shape), reversed(x.shape), strict=False)
        fits = len(shape) <= x.dim() and all(budget in (1, size) for budget, size in sizes)
        require(fits, "budgets", shape, f"give a shape that broadcasts to {tuple(x.shape)}")

    @property
    def radius(self) -> Tensor:
        """The budgets."""
        return self.budgets

    def interval(self, x: Tensor) -> Box:
        """See :meth:`ThreatModel.interval`."""
        check_images(x)
        self._check_shape(x)
        return Box((x - self.budgets).clamp(min=0.0), (x + self.budgets).clamp(max=1.0))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """See :meth:`ThreatModel.project`."""
        check_points(x_adv, x)
        self._check_shape(x)
        return (x_adv - x).clamp(-self.budgets, self.budgets).add_(x).clamp_(0.0, 1.0)

    def sample(self, x: Tensor) -> Tensor:
        """Uniform in the box; see :meth:`ThreatModel.sample`."""
        lower, upper = self.interval(x)
        return lower + (upper - lower) * rand_like(x)

    def direction(self, gradient: Tensor, share: Tensor | float) -> Tensor:
        """Sign of the gradient; see :meth:`ThreatModel.direction`."""
        return gradient.sign()

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """See :meth:`ThreatModel.contains`."""
        check_images(x)
        self._check_shape(x)
        return ((x_adv >= 0) & (x_adv <= 1) & (_length(x_adv, x) <= 1.00001 * self.budgets)).flatten(1).all(1)

    def select(self, chosen: Tensor) -> PixelBox:
        """See :meth:`ThreatModel.select`."""
        per_example = self.budgets.dim() == 4 and len(self.budgets) > 1
        if not per_example:
            return self
        with checked_before():
            return PixelBox(self.budgets[chosen])


class LinfBall(PixelBox):
    """Uniform budgets: |x' - x|_inf <= epsilon, cut to [0, 1].

    Args:
        epsilon: radius in [0, 1].

    Raises:
        SettingError: if epsilon is outside [0, 1].
    """

    def __init__(self, epsilon: float) -> None:
        require(0.0 <= epsilon <= 1.0, "epsilon", epsilon, "give a radius in pixel units, between 0 and 1")
        with checked_before():
            super().__init__(torch.tensor(epsilon))
        self.epsilon = epsilon

    def interval(self, x: Tensor) -> Box:
        """See :meth:`ThreatModel.interval`."""
        check_images(x)
        return Box((x - self.epsilon).clamp(min=0.0), (x + self.epsilon).clamp(max=1.0))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """See :meth:`ThreatModel.project`; by a number, in half the time that a tensor takes."""
        check_points(x_adv, x)
        return (x_adv - x).clamp_(-self.epsilon, self.epsilon).add_(x).clamp_(0.0, 1.0)


class _NormBall:
    """What the l2 and the l1 ball share."""

    def __init__(self, epsilon: float) -> None:
        require(0.0 <= epsilon <= 1e6, "epsilon", epsilon, "give a norm over all pixels in [0, 1], such as 128 / 255")
        self.epsilon = epsilon

    @property
    def radius(self) -> float:
        """The radius."""
        return self.epsilon

    def interval(self, x: Tensor) -> Box:
        """See :meth:`ThreatModel.interval`."""
        check_images(x)
        return Box((x - self.epsilon).clamp(min=0.0), (x + self.epsilon).clamp(max=1.0))

    def _norm(self, delta: Tensor) -> Tensor:
        raise NotImplementedError

    def _at_random(self, x: Tensor, delta: Tensor) -> Tensor:
        """``x`` moved in the direction ``delta``, all (B, C, H, W), by a uniform share of the radius, cut to [0, 1].

        Uniform in the ball would be on its surface, in many dimensions; attacks that start there end weaker.
        """
        share = rand((len(x),), x)
        length = self.epsilon * share / self._norm(delta.flatten(1)).clamp_min(TINY)
        return (x + delta * length[:, None, None, None]).clamp(0.0, 1.0)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """See :meth:`ThreatModel.contains`."""
        check_images(x)
        in_range = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
        return in_range & (self._norm(_length(x_adv, x).flatten(1)) <= 1.00001 * self.epsilon)


class L2Ball(_NormBall):
    """|x' - x|_2 <= epsilon, cut to [0, 1].

    Args:
        epsilon: radius: l2 norm over all pixels and channels, in units of [0, 1]; at most 1e6.

    Raises:
        SettingError: if epsilon is negative or above 1e6.
    """

    def _norm(self, delta: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(delta, dim=1)
        return norm

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Onto the ball and [0, 1] at once; see :meth:`ThreatModel.project`.

        The nearest point is the perturbation scaled down, then cut to [0, 1], by the largest scale that suffices.
        """
        check_points(x_adv, x)
        delta, length, room = split_perturbation(x_adv, x)

        def shrunk(scale: Tensor) -> Tensor:
            return torch.minimum(length * scale[:, None], room)

        # cutting shortens: what is scaled to the ball's surface before it is cut is always inside
        inside = (self.epsilon / self._norm(length).clamp_min(TINY)).clamp(max=1.0)
        return moved(x, delta, largest(shrunk, self._norm, inside, self.epsilon))

    def sample(self, x: Tensor) -> Tensor:
        """See :meth:`ThreatModel.sample` and :meth:`_NormBall._at_random`."""
        check_images(x)
        return self._at_random(x, randn_like(x))

    def direction(self, gradient: Tensor, share: Tensor | float) -> Tensor:
        """The gradient over its norm; see :meth:`ThreatModel.direction`."""
        # first over the largest entry: the squares of a confident network's gradients are 0 in float32
        gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(TINY)
        return gradient / self._norm(gradient.flatten(1)).clamp_min(TINY)[:, None, None, None]

    def select(self, chosen: Tensor) -> L2Ball:
        """See :meth:`ThreatModel.select`."""
        return self


class L1Ball(_NormBall):
    """|x' - x|_1 <= epsilon, cut to [0, 1].

    Args:
        epsilon: radius: l1 norm over all pixels and channels, in units of [0, 1]; at most 1e6.

    Raises:
        SettingError: if epsilon is negative or above 1e6.
    """

    def _norm(self, delta: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(delta, 1, dim=1)
        return norm

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Onto the ball and [0, 1] at once (Croce & Hein 2021, Prop. 2.1); see :meth:`ThreatModel.project`.

        The nearest point is the soft-thresholded perturbation, cut to [0, 1], of the least threshold that suffices.
        """
        check_points(x_adv, x)
        delta, length, room = split_perturbation(x_adv, x)
        longest = length.amax(1)
        lag = length - longest[:, None]  # the threshold (1 - scale) * longest would lose the digits of small scales

        def shrunk(scale: Tensor) -> Tensor:
            return torch.minimum((lag + (scale * longest)[:, None]).clamp_(min=0.0), room)

        return moved(x, delta, largest(shrunk, self._norm, torch.zeros_like(longest), self.epsilon))

    def sample(self, x: Tensor) -> Tensor:
        """See :meth:`ThreatModel.sample` and :meth:`_NormBall._at_random`."""
        check_images(x)
        lengths = exponential_like(x)  # over their sum they are uniform on the simplex
        return self._at_random(x, lengths * torch.where(rand_like(x) < 0.5, -1.0, 1.0))

    def direction(self, gradient: Tensor, share: Tensor | float) -> Tensor:
        """Equal parts to the pixels of largest gradient; see :meth:`ThreatModel.direction`.

        ``share`` of all pixels and channels, at least one (SLIDE, Tramer & Boneh 2019).
        """
        flat = gradient.flatten(1)
        pixels = flat.shape[1]
        count = (torch.as_tensor(share, device=flat.device) * pixels).round().long().clamp(1, pixels).expand(len(flat))
        indices = flat.abs().topk(int(count.max()), dim=1).indices
        chosen = torch.arange(indices.shape[1], device=flat.device) < count[:, None]
        signs = flat.gather(1, indices).sign() * chosen
        parts = signs / signs.abs().sum(1, keepdim=True).clamp_min(1.0)
        return torch.zeros_like(flat).scatter_(1, indices, parts).reshape(gradient.shape)

    def select(self, chosen: Tensor) -> L1Ball:
        """See :meth:`ThreatModel.select`."""
        return self


def ball(norm: Norm, epsilon: float) -> ThreatModel:
    """The ball of radius ``epsilon`` in a norm.

    Raises:
        SettingError: if there is none of that name, or the radius is out of its range.
    """
    require(norm in get_args(Norm), "norm", norm, "give linf, l2 or l1")
    if norm == "linf":
        return LinfBall(epsilon)
    return L2Ball(epsilon) if norm == "l2" else L1Ball(epsilon)


def _length(x_adv: Tensor, x: Tensor) -> Tensor:
    """How far each pixel was moved, less what rounding alone may have moved it: 4 units in its last place."""
    rounding = 4 * torch.finfo(x.dtype).eps * torch.maximum(x_adv.abs(), x)
    return ((x_adv - x).abs() - rounding).clamp_(min=0.0)
