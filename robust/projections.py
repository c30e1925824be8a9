"""What the projections onto the l2 and the l1 ball share: the search for one scale of each perturbation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TINY = 1e-30  # keeps 0 / 0 from being NaN; what it divides is 0 there


def split_perturbation(x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Perturbation, its absolute value, and how far each pixel can go that way in [0, 1]; all (B, d)."""
    delta, start = (x_adv - x).flatten(1), x.flatten(1)
    return delta, delta.abs(), ((delta > 0).to(x.dtype) - start).abs_()


def moved(x: Tensor, delta: Tensor, length: Tensor) -> Tensor:
    """``x`` (B, C, H, W) moved by ``length`` in the direction of ``delta``'s signs, both (B, d)."""
    return (length * delta.sign()).reshape(x.shape).add_(x).clamp_(0.0, 1.0)  # the sum may round out of the range


def largest(
    shrunk: Callable[[Tensor], Tensor], norm: Callable[[Tensor], Tensor], inside: Tensor, epsilon: float
) -> Tensor:
    """``shrunk(scale)``, (B, d), of the largest scale (B,) in [inside, 1] of which the norm is at most ``epsilon``.

    The norm must not fall with the scale. Regula falsi in Illinois' version, to 1e-6 of the radius, in float64 to
    1e-12: the line through both ends of the bracket gives the next scale; an end that stays twice is drawn in, its
    excess halved. An example's scale does not depend on the others: it stays as soon as it is near enough.
    """
    outside = torch.ones_like(inside)
    whole = shrunk(outside)
    excess = norm(whole) - epsilon
    fits = excess <= 0
    if bool(fits.all()):
        return whole
    inside, lack, stayed = torch.where(fits, outside, inside), epsilon - norm(shrunk(inside)), torch.zeros_like(inside)
    done, near = fits, max(8 * torch.finfo(inside.dtype).eps, 1e-12)
    for _ in range(100):
        done = done | (lack <= near * epsilon) | (outside - inside <= near / 8 * outside)
        if bool(done.all()):
            break
        middle = inside + (outside - inside) * (lack / (lack + excess).clamp_min(TINY))
        now = norm(shrunk(middle)) - epsilon
        fit = now <= 0
        lack, excess = (
            torch.where(fit, -now, torch.where(stayed < 0, 0.5 * lack, lack)),
            torch.where(fit, torch.where(stayed > 0, 0.5 * excess, excess), now),
        )
        inside, outside = torch.where(fit & ~done, middle, inside), torch.where(fit, outside, middle)
        stayed = torch.where(fit, 1.0, -1.0)
    return shrunk(inside)
