"""Activations of straight pieces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.bounds.operations.activation import Activation
from robust.bounds.operations.base import Interval
from robust.bounds.operations.registry import UnboundedError


class LeakyReLU(Activation):
    """max(h, slope h), slope in [0, 1].

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (LeakyReLU(0.25).interval(h).lower, LeakyReLU(0.25).interval(h).upper)]
    [-0.25, 3.0]
    >>> [round(part.item(), 3) for part in LeakyReLU(0.25).lines(h)]  # slope, offsets of the lines
    [0.812, 0.0, 0.562]
    """

    kinks, lipschitz = (0.0,), 1.0

    def __init__(self, negative_slope: float) -> None:
        if not 0 <= negative_slope <= 1:
            raise UnboundedError("give a negative slope in [0, 1]")
        self.negative_slope = negative_slope

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return F.leaky_relu(x, self.negative_slope)

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return torch.where(x > 0, 1.0, self.negative_slope).to(x.dtype)


class Clamp(Activation):
    """min(max(h, low), high).

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (Clamp(0.0, 1.0).interval(h).lower, Clamp(0.0, 1.0).interval(h).upper)]
    [0.0, 1.0]
    >>> [round(part.item(), 3) for part in Clamp(0.0, 1.0).lines(h)]  # slope, offsets of the lines
    [0.25, 0.0, 0.75]
    """

    lipschitz = 1.0

    def __init__(self, low: float | None, high: float | None) -> None:
        self.low, self.high = low, high
        self.kinks = tuple(float(end) for end in (low, high) if end is not None)

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return x.clamp(self.low, self.high)

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return (x == self.value(x)).to(x.dtype)

    def _size(self, h: Interval) -> Tensor:
        return super()._size(h) + max(map(abs, self.kinks), default=0.0)


class Abs(Activation):
    """|h|.

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (Abs().interval(h).lower, Abs().interval(h).upper)]
    [0.0, 3.0]
    >>> [round(part.item(), 3) for part in Abs().lines(h)]  # slope, offsets of the lines
    [0.5, 0.0, 1.5]
    """

    kinks, turns, lipschitz = (0.0,), (0.0,), 1.0

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return x.abs()

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return x.sign()


class Hardsigmoid(Activation):
    """min(max(h / 6 + 1/2, 0), 1).

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (Hardsigmoid().interval(h).lower, Hardsigmoid().interval(h).upper)]
    [0.333, 1.0]
    >>> [round(part.item(), 3) for part in Hardsigmoid().lines(h)]  # slope, offsets of the lines
    [0.167, 0.5, 0.5]
    """

    kinks, lipschitz = (-3.0, 3.0), 0.17

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return F.hardsigmoid(x)

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return (x.abs() <= 3).to(x.dtype) / 6
