"""Balls whose pixels share one budget: l2 and l1."""

from __future__ import annotations

from typing import Self, get_args

import torch
from torch import Tensor

from robust.checks import check_images, check_points
from robust.errors import require
from robust.noise_fitting import LinfFit, fit_l1, fit_l2
from robust.projections import TINY, project_l1, project_l2
from robust.random import exponential_like, rand, rand_like, randn_like
from robust.threat_models.base import Box, CutBall, Norm, ThreatModel, pixel_lengths
from robust.threat_models.boxes import LinfBall


class _NormBall:
    """Common parts of the l2 and the l1 ball."""

    norm: Norm
    is_box = False
    per_pixel: Tensor | None = None

    def __init__(self, epsilon: float) -> None:
        require(0.0 <= epsilon <= 1e6, "epsilon", epsilon, "give a norm over all pixels in [0, 1], such as 128 / 255")
        self.epsilon = epsilon

    @property
    def radius(self) -> float:
        """The radius."""
        return self.epsilon

    def interval(self, x: Tensor) -> Box:
        """The radius around ``x`` (B, C, H, W), all of it for one pixel, cut to [0, 1]."""
        check_images(x)
        return Box((x - self.epsilon).clamp(min=0.0), (x + self.epsilon).clamp(max=1.0))

    def region(self, x: Tensor) -> CutBall:
        """The ball around each of ``x`` (B, C, H, W), cut to [0, 1]."""
        check_images(x)
        return CutBall.around(x, x.new_full((len(x),), self.epsilon), self.norm)

    def _norm(self, delta: Tensor) -> Tensor:
        raise NotImplementedError

    def _moved_at_random(self, x: Tensor, delta: Tensor) -> Tensor:
        """``x`` moved in the direction ``delta``, all (B, C, H, W), by a uniform part of the radius, cut to [0, 1].

        Uniform in the ball would be on its surface, in many dimensions; attacks that start there end weaker.
        """
        part = rand((len(x),), x)
        length = self.epsilon * part / self._norm(delta.flatten(1)).clamp_min(TINY)
        return (x + delta * length[:, None, None, None]).clamp(0.0, 1.0)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each example is in the ball and in [0, 1], up to rounding; bool (B,)."""
        check_images(x)
        in_range = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
        return in_range & (self._norm(pixel_lengths(x_adv, x).flatten(1)) <= 1.00001 * self.epsilon)

    def lies_in(self, other: ThreatModel, batch: int) -> Tensor:
        """Whether ``other`` is a ball of the same norm and not smaller: equal for all examples, bool (batch,).

        >>> L2Ball(1.0).lies_in(L2Ball(2.0), batch=1).tolist(), L2Ball(1.0).lies_in(L1Ball(9.0), batch=1).tolist()
        ([True], [False])
        """
        return torch.tensor(self.norm == other.norm and self.epsilon <= float(other.radius)).expand(batch)

    def select(self, chosen: Tensor) -> Self:
        """The ball itself: it is the same for all examples."""
        return self


class L2Ball(_NormBall):
    """``|x' - x|_2 <= epsilon``, cut to [0, 1].

    >>> x = torch.zeros(1, 1, 1, 2)
    >>> x_adv = L2Ball(0.5).project(torch.tensor([0.6, 0.8]).view_as(x), x)
    >>> [round(value, 4) for value in x_adv.flatten().tolist()]
    [0.3, 0.4]

    Args:
        epsilon: radius: l2 norm over all pixels and channels, in units of [0, 1]; at most 1e6.

    Raises:
        SettingError: if epsilon is negative or above 1e6.
    """

    norm: Norm = "l2"

    def _norm(self, delta: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(delta, dim=1)
        return norm

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Onto the ball and [0, 1] at once; see :func:`robust.projections.project_l2`."""
        check_points(x_adv, x)
        return project_l2(x_adv, x, self.epsilon)

    def sample(self, x: Tensor) -> Tensor:
        """Move ``x`` (B, C, H, W) in a uniform direction by a uniform fraction of the radius; cut to [0, 1]."""
        check_images(x)
        return self._moved_at_random(x, randn_like(x))

    def steepest_direction(
        self, gradient: Tensor, fraction: Tensor | float = 1.0, x_adv: Tensor | None = None
    ) -> Tensor:
        """The gradient over its norm, (B, C, H, W), wherever the step begins.

        >>> direction = L2Ball(1.0).steepest_direction(torch.tensor([3.0, -4.0]).view(1, 1, 1, 2))
        >>> [round(value, 4) for value in direction.flatten().tolist()]
        [0.6, -0.8]
        """
        # first over the largest entry: the squares of a confident network's gradients are 0 in float32
        gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(TINY)
        return gradient.div_(self._norm(gradient.flatten(1)).clamp_min(TINY)[:, None, None, None])

    def fit_noise(self, x: Tensor, noise: Tensor, linf: LinfFit = "tanh") -> Tensor:
        """``x`` plus the noise at the radius exactly; see :func:`robust.noise_fitting.fit_l2`."""
        return fit_l2(x, noise, self.epsilon)


class L1Ball(_NormBall):
    """``|x' - x|_1 <= epsilon``, cut to [0, 1].

    >>> x = torch.zeros(1, 1, 1, 2)
    >>> x_adv = L1Ball(0.5).project(torch.tensor([0.75, 0.25]).view_as(x), x)
    >>> [round(value, 4) for value in x_adv.flatten().tolist()]
    [0.5, 0.0]

    Args:
        epsilon: radius: l1 norm over all pixels and channels, in units of [0, 1]; at most 1e6.

    Raises:
        SettingError: if epsilon is negative or above 1e6.
    """

    norm: Norm = "l1"

    def _norm(self, delta: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(delta, 1, dim=1)
        return norm

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Onto the ball and [0, 1] at once; see :func:`robust.projections.project_l1`."""
        check_points(x_adv, x)
        return project_l1(x_adv, x, self.epsilon)

    def sample(self, x: Tensor) -> Tensor:
        """Move ``x`` in a direction uniform on the l1 sphere by a uniform fraction of the radius; cut to [0, 1]."""
        check_images(x)
        lengths = exponential_like(x)  # over their sum they are uniform on the simplex
        return self._moved_at_random(x, lengths * torch.where(rand_like(x) < 0.5, -1.0, 1.0))

    def steepest_direction(
        self, gradient: Tensor, fraction: Tensor | float = 1.0, x_adv: Tensor | None = None
    ) -> Tensor:
        """Equal parts to a ``fraction`` of all pixels and channels, at least one: those of largest gradient.

        Source: SLIDE, Tramer & Boneh 2019.

        >>> gradient = torch.tensor([3.0, -2.0, 1.0, 0.0]).view(1, 1, 1, 4)
        >>> L1Ball(1.0).steepest_direction(gradient, fraction=0.5).flatten().tolist()
        [0.5, -0.5, 0.0, 0.0]
        """
        flat = (gradient if x_adv is None else unblocked(gradient, x_adv)).flatten(1)
        pixels = flat.shape[1]
        count = torch.as_tensor(fraction, device=flat.device) * pixels
        count = count.round().long().clamp(1, pixels).expand(len(flat))
        indices = flat.abs().topk(int(count.max()), dim=1).indices
        chosen = torch.arange(indices.shape[1], device=flat.device) < count[:, None]
        signs = flat.gather(1, indices).sign() * chosen
        parts = signs / signs.abs().sum(1, keepdim=True).clamp_min(1.0)
        return torch.zeros_like(flat).scatter_(1, indices, parts).reshape(gradient.shape)

    def fit_noise(self, x: Tensor, noise: Tensor, linf: LinfFit = "tanh") -> Tensor:
        """The nearest image in the ball to ``x`` plus the noise; see :func:`robust.noise_fitting.fit_l1`."""
        return fit_l1(x, noise, self.epsilon)


def ball(norm: Norm, epsilon: float) -> LinfBall | L2Ball | L1Ball:
    """The ball of radius ``epsilon`` in a norm.

    >>> ball("l2", 0.5).radius
    0.5

    Raises:
        SettingError: if there is none of that name, or the radius is out of its range.
    """
    require(norm in get_args(Norm), "norm", norm, "give linf, l2 or l1")
    if norm == "linf":
        return LinfBall(epsilon)
    return L2Ball(epsilon) if norm == "l2" else L1Ball(epsilon)


def unblocked(gradient: Tensor, x_adv: Tensor) -> Tensor:
    """The gradient without what would move pixels of ``x_adv`` out of [0, 1]; all (B, C, H, W).

    >>> unblocked(torch.tensor([1.0, 1.0, -1.0]), torch.tensor([0.5, 1.0, 0.0])).tolist()
    [1.0, 0.0, 0.0]
    """
    end = 1.0 - 2 * torch.finfo(x_adv.dtype).eps  # x + (1 - x) may be below 1 by rounding, x - x is 0
    # threshold_backward(g, x, t) is g where x > t, else 0: a third of the time of masks as bool tensors
    up = torch.ops.aten.threshold_backward(gradient.clamp(min=0), -x_adv, -end)
    unblocked_: Tensor = up.add_(torch.ops.aten.threshold_backward(gradient.clamp(max=0), x_adv, 0.0))
    return unblocked_
