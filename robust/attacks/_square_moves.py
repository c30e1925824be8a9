"""Proposals of the Square attack: squares at the ends of a box, windows of an l2 or l1 ball."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from robust.errors import require
from robust.projections import TINY
from robust.random import rand
from robust.threat_models import PixelBox, ThreatModel

_GRID = 5  # tiles along the shorter side of the first image
_RINGS = {2: 2, 1: 4}  # by the norm's power: the power by which the rings of a peak get lower; 4 as in l1-AutoAttack


class Moves(Protocol):
    """Proposals of images in a threat model; all images are (B, C, H, W), and inside it."""

    def start(self, x: Tensor) -> Tensor:
        """The first image to try, of all examples ``x``."""

    def move(self, x: Tensor, best: Tensor, chosen: Tensor, area: float) -> Tensor:
        """The next image to try of the ``chosen`` examples, int64 (B,), in whose images ``best`` that area moves."""


def moves_in(threat_model: ThreatModel, x: Tensor) -> Moves:
    """The proposals of images in ``threat_model`` around ``x`` (B, C, H, W).

    Raises:
        SettingError: if it is neither a box nor an l2 or l1 ball.
    """
    remedy = "take APGD: Square searches boxes, l2 and l1 balls"
    known = threat_model.is_box or threat_model.norm in ("l2", "l1")
    require(known, "threat_model", type(threat_model).__name__, remedy)
    return BoxMoves(threat_model, x) if threat_model.is_box else BallMoves(threat_model)


class BoxMoves:
    """A square goes to an end of its pixels' budgets, in each channel (Andriushchenko et al. 2020, algorithm 2).

    Args:
        box: linf ball or per-pixel box.
        x: images (B, C, H, W).
    """

    def __init__(self, box: ThreatModel, x: Tensor) -> None:
        self.budgets = torch.as_tensor(box.radius).to(x).expand_as(x)

    def start(self, x: Tensor) -> Tensor:
        """Stripes: each column of each channel at one of its ends."""
        stripes = torch.where(rand(x[:, :, :1].shape, x) < 0.5, -1.0, 1.0).to(x)
        return PixelBox(self.budgets).project(x + stripes * self.budgets, x)

    def move(self, x: Tensor, best: Tensor, chosen: Tensor, area: float) -> Tensor:
        """One square of that area."""
        ends, (height, width) = self.budgets[chosen], x.shape[2:]
        side = min(max(round((area * height * width) ** 0.5), 1), height, width)
        rows, columns = (_offsets(rand((len(x), 1), x), size, side) for size in (height, width))
        signs = torch.where(rand((*x.shape[:2], 1, 1), x) < 0.5, -1.0, 1.0).to(x)
        return PixelBox(ends).project(torch.where(_inside(rows, columns, side), x + signs * ends, best), x)


class BallMoves:
    """The perturbation of one window goes into another one, in the shape of two opposite peaks.

    In l2 the result is scaled to the radius and cut to [0, 1] (Andriushchenko et al. 2020, algorithm 3); in l1 it is
    projected onto ball and cube at once, from as many times the norm as there are channels (Croce & Hein 2021).

    Args:
        ball: l2 or l1 ball.
    """

    def __init__(self, ball: ThreatModel) -> None:
        self.ball = ball
        self.power = 2 if ball.norm == "l2" else 1
        self.radius = float(ball.radius)

    def start(self, x: Tensor) -> Tensor:
        """A grid of peaks, of random signs and directions."""
        batch, channels, height, width = x.shape
        side = -(-min(height, width) // _GRID)
        rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
        tiles = (-(-height // side), -(-width // side))
        draws = rand((batch, channels + 1, *tiles), x)[:, :, (rows // side)[:, None], columns // side]
        signs = torch.where(draws[:, 1:] < 0.5, -1.0, 1.0).to(x)
        peaks = _peaks(side, self.power).to(x)[(draws[:, 0] < 0.5).long(), (rows % side)[:, None], columns % side]
        delta = signs * peaks[:, None]
        # l1: what is beyond the ball is cut off by the projection
        return self._into_ball(x, 2 * self.radius * delta / self._norm(delta, (1, 2, 3)))

    def move(self, x: Tensor, best: Tensor, chosen: Tensor, area: float) -> Tensor:
        """Move the perturbation of two windows of that area, and the unused radius, into the first window."""
        (batch, channels, height, width), delta = x.shape, best - x
        side = min(max(round((area * height * width) ** 0.5), 3) // 2 * 2 + 1, height, width)
        draws = rand((batch, 5 + channels), x)
        rows, columns, other_rows, other_columns = (
            _offsets(draws[:, k : k + 1], size, side) for k, size in enumerate((height, width, height, width))
        )
        window, other = _inside(rows, columns, side), _inside(other_rows, other_columns, side)
        signs = torch.where(draws[:, 5:, None, None] < 0.5, -1.0, 1.0).to(x)
        at = (rows.clamp(0, side - 1)[:, :, None], columns.clamp(0, side - 1)[:, None])
        peaks = _peaks(side, self.power).to(x)[(draws[:, 4, None, None] < 0.5).long(), *at]
        old = delta * window
        shape = signs * peaks[:, None] * window + old / self._norm(old)
        unused = (self.radius**self.power - self._norm(delta, (1, 2, 3)) ** self.power).clamp_min(0.0)
        available = unused / channels + self._norm(delta * (window | other)) ** self.power
        if self.power == 1:
            available = available * channels
        new = shape / self._norm(shape) * available ** (1 / self.power)
        return self._into_ball(x, torch.where(window, new, delta * ~other))

    def _norm(self, delta: Tensor, over: tuple[int, ...] = (2, 3)) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(delta, self.power, over, keepdim=True)
        return norm.clamp_min(TINY)

    def _into_ball(self, x: Tensor, delta: Tensor) -> Tensor:
        if self.power == 1:
            return self.ball.project(x + delta, x)
        return (x + self.radius * delta / self._norm(delta, (1, 2, 3))).clamp(0.0, 1.0)


def _offsets(draws: Tensor, size: int, side: int) -> Tensor:
    """Offset of each of ``size`` rows or columns from a window's first, (B, size); ``draws`` (B, 1) are in [0, 1)."""
    return torch.arange(size, device=draws.device) - (draws * (size - side + 1)).long()


def _inside(rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Mask (B, 1, H, W) of the square whose :func:`_offsets` these are."""
    mask: Tensor = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None]
    return mask


@cache
def _peaks(side: int, power: int) -> Tensor:
    """Two peaks of opposite signs, one above the other and one beside the other, of norm 1; (2, side, side).

    Each peak is a stack of squares, of which the k-th one has the height k^-2 in l2 (ibid., eq. 2), k^-4 in l1.
    """
    halves = []
    for height, sign in ((side // 2, 1.0), (side - side // 2, -1.0)):
        rows, columns = (torch.arange(size) - size // 2 for size in (height, side))
        ring = torch.maximum(rows.abs()[:, None], columns.abs())
        heights = torch.arange(1, max(height, side) // 2 + 2, dtype=torch.float64) ** -_RINGS[power]
        half = heights.flip(0).cumsum(0).flip(0)[ring]
        halves.append(sign * half / torch.linalg.vector_norm(half, power).clamp_min(TINY))
    both = torch.cat(halves)
    peaks: Tensor = torch.stack((both, both.T)) / torch.linalg.vector_norm(both, power)
    return peaks
