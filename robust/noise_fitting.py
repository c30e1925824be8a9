"""Fits free noise to a norm ball around an image, so that gradients reach the noise.

A threat model takes the one of its norm: :meth:`robust.threat_models.ThreatModel.fit_noise`. Noise and images are
(B, C, H, W); what is returned is in the ball and in [0, 1]. Source: multi-norm training (MNG-AC), its noise generator.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robust.checks import check_points
from robust.projections import project_l1

LinfFit = Literal["tanh", "clip", "straight_through"]
LINF_FITS = ("tanh", "clip", "straight_through")


def fit_linf(x: Tensor, noise: Tensor, epsilon: float, fit: LinfFit = "tanh") -> Tensor:
    """``x`` plus noise of at most ``epsilon`` a pixel.

    >>> x, noise = torch.full((1, 1, 1, 2), 0.5), torch.tensor([2.0, -0.125]).view(1, 1, 1, 2)
    >>> fit_linf(x, noise, epsilon=0.25, fit="clip")
    tensor([[[[0.7500, 0.3750]]]])

    Args:
        x: images in [0, 1].
        noise: noise of any size, of the images' shape.
        epsilon: radius of the ball.
        fit: ``"tanh"``: epsilon * tanh(noise), whose gradient is nowhere zero; ``"clip"``: the noise cut to
            [-epsilon, epsilon], as published, which passes almost no gradient for noise of std 1;
            ``"straight_through"``: cut in the same way, with the gradient of no cut.
    """
    if fit == "tanh":
        return (x + epsilon * noise.tanh()).clamp(0, 1)
    cut = noise.clamp(-epsilon, epsilon)
    if fit == "straight_through":
        cut = noise + (cut - noise).detach()
    return (x + cut).clamp(0, 1)


def fit_l2(x: Tensor, noise: Tensor, epsilon: float) -> Tensor:
    """``x`` plus a multiple of the noise, cut to [0, 1], at distance ``epsilon`` exactly, in closed form.

    With t the square of the multiple and s_i the room of a pixel in the noise's direction, the squared distance is
    sum_i min(t noise_i^2, s_i^2): linear in t between the breakpoints s_i^2 / noise_i^2, and t follows from those
    pixels that are cut. Where the whole room is shorter than epsilon, all of it is used. The gradient is that of the
    fitted image, the rescaling included.

    >>> fit_l2(torch.zeros(1, 1, 1, 2), torch.tensor([3.0, 4.0]).view(1, 1, 1, 2), epsilon=0.5)
    tensor([[[[0.3000, 0.4000]]]])
    """
    noise = _of_size_one(noise)  # the result does not depend on the noise's size; squares would over- and underflow
    square, room = noise.flatten(1).square(), _room(x, noise).square()
    with torch.no_grad():
        cut = _cut_pixels(square, room, epsilon**2)
    left = torch.where(cut, 0.0, square).sum(1)
    fits = left > 0
    missing = epsilon**2 - torch.where(cut, room, 0.0).sum(1)
    multiple = (missing.clamp(min=0) / torch.where(fits, left, 1.0)).clamp(min=_TINY).sqrt()
    # where all pixels are cut, twice what cuts the last one: finite, for the zeros of the noise, and beyond any kink
    whole = 2 * (room / square).nan_to_num(0, posinf=0).amax(1).sqrt().detach()
    return (x + torch.where(fits, multiple, whole)[:, None, None, None] * noise).clamp(0, 1)


def _cut_pixels(square: Tensor, room: Tensor, target: float) -> Tensor:
    """Whether each pixel of the fitted noise is cut at the end of its room, bool (B, d); all arguments are squared."""
    breakpoint = torch.where(square > 0, room / square, torch.inf)
    order = breakpoint.argsort(1)
    sorted_square, sorted_room = square.gather(1, order), room.gather(1, order)
    used = sorted_room.cumsum(1)  # by the pixels cut up to here, at their breakpoint
    rest = sorted_square.sum(1, keepdim=True) - sorted_square.cumsum(1)
    at = breakpoint.gather(1, order)
    reached = used + torch.where(rest > 0, rest * at, 0.0)  # squared distance at each breakpoint
    cut = (reached < target) & at.isfinite()
    return torch.zeros_like(cut).scatter(1, order, cut)


def fit_l1(x: Tensor, noise: Tensor, epsilon: float) -> Tensor:
    """The nearest image to ``x`` plus the noise, in the l1 ball of radius ``epsilon`` and in [0, 1].

    That leaves the largest entries. The gradient follows from the conditions of the projection: with F the pixels
    that are neither zero nor at the end of their room, an entry of F moves as its noise does less the mean over F.

    >>> fit_l1(torch.zeros(1, 1, 1, 2), torch.tensor([0.75, 0.5]).view(1, 1, 1, 2), epsilon=0.75)
    tensor([[[[0.5000, 0.2500]]]])
    """
    with torch.no_grad():
        check_points(x + noise, x)
        fitted = project_l1(x + noise, x, epsilon)
        length = (fitted - x).abs().flatten(1)
        at_end = torch.where(noise >= 0, fitted > 1 - 2 * torch.finfo(x.dtype).eps, fitted <= 0)  # up to rounding
        free = ((length > 0) & ~at_end.flatten(1)).to(x.dtype)
        binds = (length.sum(1, keepdim=True) > (1 - 1e-5) * epsilon).to(x.dtype)
    entries = noise.flatten(1).abs()
    mean = (free * entries).sum(1, keepdim=True) / free.sum(1, keepdim=True).clamp(min=1)
    moved = (free * (entries - binds * mean) * noise.flatten(1).sign()).view_as(x)
    return fitted + (moved - moved.detach())


def _of_size_one(noise: Tensor) -> Tensor:
    """Each example's noise over its largest entry, which counts as constant; 0 stays 0."""
    largest = noise.detach().abs().flatten(1).amax(1).view(-1, *[1] * (noise.dim() - 1))
    return noise / torch.where(largest > 0, largest, 1.0)


def _room(x: Tensor, noise: Tensor) -> Tensor:
    """Distance that each pixel can move in [0, 1] in the direction of the noise, (B, d)."""
    return torch.where(noise >= 0, 1 - x, x).flatten(1)


_TINY = 1e-30  # the square root has no slope at 0; noise is of size 1 there
