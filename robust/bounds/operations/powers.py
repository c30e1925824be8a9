"""Powers of activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robust.bounds.operations.activation import Activation
from robust.bounds.operations.base import Interval  # noqa: F401  (in examples)


class Square(Activation):
    """h^2.

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (Square().interval(h).lower, Square().interval(h).upper)]
    [0.0, 9.0]
    >>> [round(part.item(), 3) for part in Square().lines(h)]  # slope, offsets of the lines
    [2.0, -1.0, 3.0]
    """

    pieces, turns = ((-math.inf, math.inf, 1),), (0.0,)

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return x.square()

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return 2 * x

    def touch(self, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The point where the function has that slope."""
        return slope / 2


class Power(Activation):
    """(h + eps)^exponent of h that are not negative, with a negative exponent.

    >>> h = Interval(torch.tensor([[2.0]]), torch.tensor([[1.0]]))  # [1, 3]
    >>> [round(end.item(), 3) for end in (Power(-0.5, 0.0).interval(h).lower, Power(-0.5, 0.0).interval(h).upper)]
    [0.577, 1.0]
    >>> [round(part.item(), 3) for part in Power(-0.5, 0.0).lines(h)]  # slope, offsets of the lines
    [-0.211, 1.126, 1.211]
    """

    pieces, falls = ((-math.inf, math.inf, 1),), True

    def __init__(self, exponent: float, eps: float) -> None:
        self.exponent, self.eps = exponent, eps

    def value(self, x: Tensor) -> Tensor:
        """f; h below 0 are rounded zeros."""
        return (x.clamp(min=0) + self.eps).pow(self.exponent)

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return self.exponent * (x.clamp(min=0) + self.eps).pow(self.exponent - 1)

    def touch(self, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The point where the function has that slope."""
        tiny = torch.finfo(slope.dtype).tiny
        return (slope / self.exponent).clamp(min=tiny).pow(1 / (self.exponent - 1)) - self.eps
