"""Euclidean projections onto norm balls cut to [0, 1]: the search for one scale of each perturbation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

NEWTON_STEPS = 8
TINY = 1e-30  # keeps 0 / 0 from being NaN; what it divides is 0 there


def project_l2(x_adv: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """The nearest image to ``x_adv`` with ``|x' - x|_2 <= epsilon``, in [0, 1]; all (B, C, H, W).

    It is the perturbation scaled down, then cut to [0, 1], by the largest scale that suffices.

    >>> x = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    >>> [round(value, 6) for value in project_l2(torch.tensor([3.0, 4.0]).view_as(x), x, 0.5).flatten().tolist()]
    [0.3, 0.4]
    """
    delta, length, room = _split_perturbation(x_adv, x)

    def shrunk(scale: Tensor) -> Tensor:
        return torch.minimum(length * scale[:, None], room)

    # cutting shortens: what is scaled to the ball's surface before it is cut is always inside
    inside = (epsilon / torch.linalg.vector_norm(length, dim=1).clamp_min(TINY)).clamp(max=1.0)
    norm = partial(torch.linalg.vector_norm, dim=1)
    return _moved(x, delta, largest(shrunk, norm, inside, epsilon))


def project_l1(x_adv: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """The nearest image to ``x_adv`` with ``|x' - x|_1 <= epsilon``, in [0, 1]; all (B, C, H, W).

    It is the soft-thresholded perturbation, cut to [0, 1], of the least threshold that suffices (Croce & Hein 2021,
    Prop. 2.1).

    >>> x = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    >>> x_adv = torch.tensor([0.7, 0.5, 0.1]).view_as(x)
    >>> [round(value, 6) for value in project_l1(x_adv, x, 0.6).flatten().tolist()]
    [0.4, 0.2, 0.0]
    """
    delta, length, room = _split_perturbation(x_adv, x)
    longest = length.amax(1)
    lag = length - longest[:, None]  # the threshold (1 - scale) * longest would lose the digits of small scales

    def shrunk(scale: Tensor) -> Tensor:
        return torch.minimum((lag + (scale * longest)[:, None]).clamp_(min=0.0), room)

    def slope(point: Tensor) -> Tensor:
        """Derivative of the norm to the scale: the number of pixels neither 0 nor at their end, times the longest."""
        return ((room - point) * point).sign_().sum(1) * longest

    norm = partial(torch.sum, dim=1)  # no entry is negative
    return _moved(x, delta, largest(shrunk, norm, torch.zeros_like(longest), epsilon, slope))


def _split_perturbation(x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Perturbation, its absolute value, and how far each pixel can go that way in [0, 1]; all (B, d)."""
    delta, start = (x_adv - x).flatten(1), x.flatten(1)
    return delta, delta.abs(), delta.sign().clamp_(min=0.0).sub_(start).abs_()  # several times as fast as a mask


def _moved(x: Tensor, delta: Tensor, length: Tensor) -> Tensor:
    """``x`` (B, C, H, W) moved by ``length`` in the direction of ``delta``'s signs, both (B, d)."""
    return (length * delta.sign()).reshape(x.shape).add_(x).clamp_(0.0, 1.0)  # the sum may round out of the range


def largest(
    shrunk: Callable[[Tensor], Tensor],
    norm: Callable[[Tensor], Tensor],
    inside: Tensor,
    epsilon: float,
    slope: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``shrunk(scale)``, (B, d), of the largest scale (B,) in [inside, 1] of which the norm is at most ``epsilon``.

    The norm must not fall with the scale. Regula falsi in Illinois' version, to 1e-6 of the radius, in float64 to
    1e-12: the line through both ends of the bracket gives the next scale; an end that stays twice is drawn in, its
    excess halved. The first steps are Newton's where the norm's ``slope`` at a point is given and they stay in the
    bracket. An example's scale does not depend on the others: it stays as soon as it is near enough. Where the norm at
    1 is above some hundred radii, rounding the scale changes more, and above a million radii the search may end early.

    >>> length = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> point = largest(lambda scale: scale[:, None] * length, lambda point: point.sum(1), zero, epsilon=3.5)
    >>> [round(value, 6) for value in point[0].tolist()]
    [1.5, 2.0]
    """
    outside = torch.ones_like(inside)
    whole = shrunk(outside)
    excess = norm(whole) - epsilon
    fits = excess <= 0
    if bool(fits.all()):
        return whole
    inside, lack, stayed = torch.where(fits, outside, inside), epsilon - norm(shrunk(inside)), torch.zeros_like(inside)
    done, near = fits, max(8 * torch.finfo(inside.dtype).eps, 1e-12)
    newton = outside if slope is None else outside - (excess + 0.5 * near * epsilon) / slope(whole).clamp_min(TINY)
    for step in range(100):
        done = done | (lack <= near * epsilon) | (outside - inside <= near / 8 * outside)
        if bool(done.all()):
            break
        middle = inside + (outside - inside) * (lack / (lack + excess).clamp_min(TINY))
        if slope is not None and step < NEWTON_STEPS:
            middle = torch.where((newton > inside) & (newton < outside), newton, middle)
        point = shrunk(middle)
        now = norm(point) - epsilon
        fit = now <= 0
        if slope is not None and step + 1 < NEWTON_STEPS:
            newton = middle - (now + 0.5 * near * epsilon) / slope(point).clamp_min(TINY)
        lack, excess = (
            torch.where(fit, -now, torch.where(stayed < 0, 0.5 * lack, lack)),
            torch.where(fit, torch.where(stayed > 0, 0.5 * excess, excess), now),
        )
        inside, outside = torch.where(fit & ~done, middle, inside), torch.where(fit, outside, middle)
        stayed = torch.where(fit, 1.0, -1.0)
    return shrunk(inside)
