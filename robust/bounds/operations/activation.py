"""Elementwise functions that are given by their value, their slope, and where they bend."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from robust.bounds.operations.base import Arithmetic, Interval, Operation

Piece = tuple[float, float, int]
HALVED, STEPS = 3, 15  # of the search for a tangent


class Activation(Operation):
    """An elementwise function f, bounded over [l, u] by two parallel lines with the slope of its chord.

    The lines' offsets are the extremes of g(h) = f(h) - slope h. They are at an end, at a kink, or inside of a concave
    piece (for the upper line; a convex one for the lower), where the tangent at *any* point t is a bound of f, hence
    g(h) <= g(t) + (f'(t) - slope) (h - t): the bounds hold however well t, where f' should be the slope, is found.

    >>> from robust.bounds.operations.powers import Square
    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> Square().interval(h).lower, Square().interval(h).upper
    (tensor([[0.]]), tensor([[9.]]))
    >>> Square().lines(h)  # 2 h + 3 through the ends, 2 h - 1 touches at 1
    (tensor([[2.]]), tensor([[-1.]]), tensor([[3.]]))

    Attributes:
        kinks: points where f is continuous but has no slope.
        pieces: (from, to, curvature) of each piece of f that is not straight, between kinks and points of inflection;
            curvature is 1 where f is convex, -1 where it is concave.
        turns: points between which f is monotone; none where it increases everywhere.
        falls: whether f decreases everywhere.
        lipschitz: the largest absolute slope; None if slopes are unbounded, and then rounding errors are not bounded.
        reach: f is nearly straight outside [-reach, reach]: tangents are searched inside.
    """

    kinks: tuple[float, ...] = ()
    pieces: tuple[Piece, ...] = ()
    turns: tuple[float, ...] = ()
    falls: bool = False
    lipschitz: float | None = None
    reach: float = 16.0

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """f, of any shape."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """The derivative of f, of any shape."""

    def interval(self, *inputs: Interval) -> Interval:
        """The extremes of f at the ends and at the turns between them."""
        lower, upper = inputs[0].lower, inputs[0].upper
        low, high = self.value(lower), self.value(upper)
        if self.falls:
            low, high = high, low
        if self.turns:
            low, high = torch.minimum(low, high), torch.maximum(low, high)
        for turn in self.turns:
            inside, extreme = (lower < turn) & (turn < upper), self.value(lower.new_tensor(turn))
            low = torch.where(inside, low.clamp(max=extreme), low)
            high = torch.where(inside, high.clamp(min=extreme), high)
        return Interval.between(low, high)

    def bends(self, h: Interval) -> Tensor:
        """Where a kink or a part of a piece that is not straight is inside the interval."""
        low, high = h.lower, h.upper
        bent = torch.zeros_like(low, dtype=torch.bool)
        for kink in self.kinks:
            bent |= (low < kink) & (kink < high)
        for left, right, _ in self.pieces:
            bent |= (low < right) & (left < high)
        return bent

    def backward(self, A: Tensor, *inputs: Interval) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """The upper line of a positive coefficient, the lower line of a negative one."""
        slope, below, above = self.lines(inputs[0])
        positive = A.clamp(min=0)
        constant = positive * above[:, None] + (A - positive) * below[:, None]
        return (A * slope[:, None],), constant.flatten(2).sum(-1)

    def lines(self, h: Interval) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, and offsets of the lines below and above f, of the interval's shape each."""
        low, high = h.lower, h.upper
        narrow = (high - low) < 1e-3 * torch.finfo(low.dtype).eps ** 0.25 * (1 + h.size.detach())
        chord = (self.value(high) - self.value(low)) / torch.where(narrow, 1.0, high - low)
        slope = torch.where(narrow, self.slope(h.center), chord)

        def rest(x: Tensor) -> Tensor:
            return self.value(x) - slope * x

        ends = rest(low), rest(high)
        below, above = torch.minimum(*ends), torch.maximum(*ends)
        for kink in self.kinks:
            at_kink = torch.where((low < kink) & (kink < high), rest(torch.full_like(low, kink)), ends[0])
            below, above = torch.minimum(below, at_kink), torch.maximum(above, at_kink)
        for piece in self.pieces:
            inside, offset = self._tangent(piece, low, high, slope)
            if piece[2] < 0:
                above = torch.where(inside, torch.maximum(above, offset), above)
            else:
                below = torch.where(inside, torch.minimum(below, offset), below)
        return slope, below, above

    def _tangent(self, piece: Piece, low: Tensor, high: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Whether f has that slope inside of a piece, and the offset of a line with it beyond f there."""
        curvature = piece[2]
        with torch.no_grad():
            left, right = low.clamp(*piece[:2]), high.clamp(*piece[:2])
            inside = curvature * (self.slope(left) - slope) < 0
            inside &= (curvature * (self.slope(right) - slope) > 0) & (left < right)
            t = self.touch(slope, left, right)
            t = torch.where(inside, torch.minimum(torch.maximum(t, left), right), left)
            excess = self.slope(t) - slope
            sides = excess * (left - t), excess * (right - t)
            excess = torch.maximum(*sides) if curvature < 0 else torch.minimum(*sides)
        return inside, self.value(t) - slope * t + excess

    def touch(self, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The approximate point between left and right where f has ``slope``, by false position (Illinois)."""
        left, right = (end.clamp(-self.reach, self.reach) for end in (left, right))
        x0, x1, y0, y1 = left, right, self.slope(left) - slope, self.slope(right) - slope
        for step in range(STEPS):
            x = x1 - y1 * (x1 - x0) / torch.where(y1 == y0, 1.0, y1 - y0)
            x = (x0 + x1) / 2 if step < HALVED else torch.minimum(torch.maximum(x, left), right)
            y = self.slope(x) - slope
            crossed = y * y1 <= 0
            x0, y0 = torch.where(crossed, x1, x0), torch.where(crossed, y1, y0 / 2)
            x1, y1 = x, y
        return x1

    @property
    def rounding_known(self) -> bool:
        """Whether slopes are bounded."""
        return self.lipschitz is not None

    def error(self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic) -> Tensor | None:
        """The error of the input times the Lipschitz constant, and the rounding of f."""
        if self.lipschitz is None:
            return None
        return 1.01 * self.lipschitz * errors[0] + arithmetic.gamma(32) * self._size(inputs[0])

    def row_error(
        self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic
    ) -> Tensor | None:
        """An activation outside of its interval moves f and the line; and the rounding of f, slope and offsets."""
        if self.lipschitz is None:
            return None
        size = self._size(inputs[0])
        return 2.02 * self.lipschitz * errors[0] + (arithmetic.gamma(128) + 2 * arithmetic.of_sum(size)) * size

    def _size(self, h: Interval) -> Tensor:
        """The absolute terms of f and of the lines: f is 0 or a constant at 0, and not steeper than ``lipschitz``."""
        assert self.lipschitz is not None
        return 2 * max(self.lipschitz, 1.0) * h.size + self.value(torch.zeros_like(h.size)).abs()
