"""What the Square attack tries next: squares at the ends of budgets, or windows that exchange their part of a norm."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from robust.projections import TINY
from robust.random import rand
from robust.threat_models import PixelBox, ThreatModel

# Queries after which the squares' area is halved once more (Andriushchenko et al. 2020, Sec. 4.2).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Moves(Protocol):
    """Random proposals of images (B, C, H, W) in the threat model."""

    def start(self, x: Tensor) -> Tensor:
        """The first proposal for the images ``x``."""

    def move(self, x: Tensor, best: Tensor, area: float) -> Tensor:
        """Change the ``best`` images so far in squares of this fraction of the image."""

    def select(self, chosen: Tensor) -> Moves:
        """Moves of the examples with these indices."""


def area_of(query: int, first_area: float) -> float:
    """Fraction of the image that the squares of a query cover."""
    return first_area * 0.5 ** sum(query > halving for halving in HALVINGS)


class BoxMoves:
    """Stripes, then squares, whose pixels are at one end of their budgets (ibid., Sec. 4.2; algorithm 2).

    Args:
        budgets: (B, C, H, W).
    """

    def __init__(self, budgets: Tensor) -> None:
        self.budgets = budgets

    def start(self, x: Tensor) -> Tensor:
        stripes = _signs((*x.shape[:2], 1, x.shape[3]), x)
        return PixelBox(self.budgets).project(x + stripes * self.budgets, x)

    def move(self, x: Tensor, best: Tensor, area: float) -> Tensor:
        _, _, height, width = x.shape
        side = min(max(round((area * height * width) ** 0.5), 1), height, width)
        inside = Window(x, side).mask
        moved = x + _signs((*x.shape[:2], 1, 1), x) * self.budgets
        return PixelBox(self.budgets).project(torch.where(inside, moved, best), x)

    def select(self, chosen: Tensor) -> BoxMoves:
        return BoxMoves(self.budgets[chosen])


class BallMoves:
    """Bumps that use the whole radius, and windows of which one takes over the other's part of it.

    The l2 version is Andriushchenko et al. 2020, Sec. 4.3, algorithm 3; that of l1 has its norm in place of l2
    (Croce & Hein 2021). Cutting to [0, 1] only brings pixels nearer to the image, so that the norm does not grow.

    Args:
        radius: of the ball.
        order: 2 for l2, 1 for l1.
    """

    def __init__(self, radius: float, order: int) -> None:
        self.radius = radius
        self.order = order

    def start(self, x: Tensor) -> Tensor:
        """Bumps in tiles of a fifth of the image, each of a random sign."""
        batch, channels, height, width = x.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = -(-height // side), -(-width // side)
        signs = _signs((batch, channels, rows, columns), x)
        signs = signs.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]
        delta = signs * bump(side, x).repeat(rows, columns)[:height, :width]
        return (x + delta * (self.radius / self._norm(delta, (1, 2, 3)).clamp_min(TINY))).clamp(0.0, 1.0)

    def move(self, x: Tensor, best: Tensor, area: float) -> Tensor:
        """A bump joins the first window's perturbation, which gets the radius that the second one gives up."""
        _, channels, height, width = x.shape
        side = max(round((area * height * width) ** 0.5), 3) | 1  # odd, so that a bump has a middle
        side = min(side, height, width)
        delta = best - x
        gaining, losing = Window(x, side), Window(x, side)
        both = gaining.mask | losing.mask
        unused = (self.radius**self.order - self._power(delta, (1, 2, 3))).clamp_min(0.0) / channels
        available = (unused + self._power(delta * both, (2, 3))) ** (1 / self.order)
        added = gaining.place(bump(side, x)) * _signs((*x.shape[:2], 1, 1), x)
        old = delta * gaining.mask
        new = added + old / self._norm(old, (2, 3)).clamp_min(TINY)
        new = new * (available / self._norm(new, (2, 3)).clamp_min(TINY))
        return (x + torch.where(both, new, delta)).clamp(0.0, 1.0)

    def select(self, chosen: Tensor) -> BallMoves:
        return self

    def _power(self, delta: Tensor, dims: tuple[int, ...]) -> Tensor:
        return delta.abs().pow(self.order).sum(dims, keepdim=True)

    def _norm(self, delta: Tensor, dims: tuple[int, ...]) -> Tensor:
        return self._power(delta, dims) ** (1 / self.order)


class Window:
    """A square at a random place in each image.

    Args:
        x: images (B, C, H, W).
        side: of the square, in pixels.
    """

    def __init__(self, x: Tensor, side: int) -> None:
        batch, _, height, width = x.shape
        self._side = side
        self._rows, self._columns = (
            torch.arange(size, device=x.device) - (rand((batch, 1), x) * (size - side + 1)).long()
            for size in (height, width)
        )

    @property
    def mask(self) -> Tensor:
        """True inside, (B, 1, H, W)."""
        rows, columns = ((each >= 0) & (each < self._side) for each in (self._rows, self._columns))
        mask: Tensor = rows[:, None, :, None] & columns[:, None, None, :]
        return mask

    def place(self, pattern: Tensor) -> Tensor:
        """The pattern (side, side) in each image's square, zeros elsewhere; (B, 1, H, W)."""
        rows, columns = (each.clamp(0, self._side - 1) for each in (self._rows, self._columns))
        return pattern[rows[:, :, None], columns[:, None, :]][:, None] * self.mask


def bump(side: int, like: Tensor) -> Tensor:
    """Two opposite hills side by side, (side, side), of l2 norm 1 (ibid., eq. 2); one hill below side 2.

    >>> [[round(value, 2) for value in row] for row in bump(2, torch.zeros(1)).tolist()]
    [[0.14, 0.69], [-0.14, -0.69]]
    """
    upper = side // 2
    pattern = torch.cat([_hill(upper, side, like), -_hill(side - upper, side, like)])
    normalised: Tensor = (pattern if upper else -pattern) / torch.linalg.vector_norm(pattern)
    return normalised


def _hill(height: int, width: int, like: Tensor) -> Tensor:
    """Values that rise towards the middle of a rectangle: sums of 1 / k^2 from the distance to it on."""
    rows = torch.arange(height, device=like.device).sub(height // 2).abs()
    columns = torch.arange(width, device=like.device).sub(width // 2).abs()
    distance = torch.maximum(rows[:, None], columns[None, :])
    terms = torch.arange(1, max(height, width) // 2 + 2, device=like.device, dtype=like.dtype) ** -2
    values: Tensor = terms.flip(0).cumsum(0).flip(0)[distance]
    return values


def moves(threat_model: ThreatModel, x: Tensor) -> Moves:
    """The moves for images ``x`` (B, C, H, W) in a threat model."""
    if threat_model.is_box:
        return BoxMoves(torch.as_tensor(threat_model.radius).to(x).expand_as(x))
    return BallMoves(float(threat_model.radius), order=1 if threat_model.norm == "l1" else 2)


def _signs(shape: tuple[int, ...], x: Tensor) -> Tensor:
    return torch.where(rand(shape, x) < 0.5, -1.0, 1.0).to(x.dtype)
