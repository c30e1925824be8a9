"""The step sizes of Auto-PGD: when an example's step is halved, or in l1 thinned out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Pace(ABC):
    """Steps of each example of a run: their sizes, as fractions of the radius, and the fractions of pixels moved."""

    _rows: tuple[str, ...]
    momentum: float
    fraction: float | Tensor
    step_size: Tensor

    @abstractmethod
    def update(self, loss: Tensor, best_loss: Tensor, best: Tensor) -> Tensor:
        """Update the step sizes and fractions; return which examples restart from their best image, bool (B,)."""

    def select(self, on: Tensor) -> None:
        """Continue with these examples, bool (B,)."""
        for name in self._rows:
            setattr(self, name, getattr(self, name)[on])


class Halving(Pace):
    """Pace in linf, l2 and boxes (Croce & Hein 2020, Sec. 3); step sizes are fractions of the radius.

    An example's step is halved where less than 3/4 of the steps since the last check raised its loss, or where none
    raised its best since it was last halved. The checks come closer and closer together.
    """

    _rows = ("step_size", "_rises", "_last", "_checked", "_halved")
    momentum = 0.25
    fraction = 1.0

    def __init__(self, loss: Tensor, steps: int) -> None:
        self.step_size = torch.full_like(loss, 2.0)
        self._window, self._least, self._less = (max(int(part * steps), 1) for part in (0.22, 0.06, 0.03))
        self._since = 0
        self._rises = torch.zeros_like(loss)
        self._last, self._checked = loss, loss
        self._halved = torch.ones_like(loss, dtype=torch.bool)

    def update(self, loss: Tensor, best_loss: Tensor, best: Tensor) -> Tensor:
        self._rises += loss > self._last
        self._last = loss
        self._since += 1
        if self._since < self._window:
            return torch.zeros_like(self._halved)
        stuck = ~self._halved & (self._checked >= best_loss)
        self._halved = (self._rises <= 0.75 * self._window) | stuck
        self._checked = best_loss
        self.step_size = torch.where(self._halved, self.step_size / 2, self.step_size)
        self._rises.zero_()
        self._since = 0
        self._window = max(self._window - self._less, self._least)
        return self._halved


class Thinning(Pace):
    """Pace in l1 (Croce & Hein 2021, Sec. 4).

    A step moves 1 / 1.5 of as many pixels as the example's best perturbation uses; where that number still falls it is
    of the whole radius again, else it shrinks.
    """

    _rows = ("_x", "_used", "fraction", "step_size")
    momentum = 0.0

    def __init__(self, x: Tensor, start: Tensor, steps: int) -> None:
        self._x = x
        self._used = self._count(start)
        self.fraction = self._used / (1.5 * x[0].numel())
        self.step_size = torch.ones_like(self.fraction)
        self._window = max(int(0.04 * steps), 1)
        self._since = 0

    def _count(self, x_adv: Tensor) -> Tensor:
        return (x_adv != self._x).flatten(1).sum(1).to(self._x.dtype)

    def update(self, loss: Tensor, best_loss: Tensor, best: Tensor) -> Tensor:
        self._since += 1
        if self._since < self._window:
            return torch.zeros_like(loss, dtype=torch.bool)
        used = self._count(best)
        thinner = used < 0.95 * self._used
        self.fraction = used / (1.5 * self._x[0].numel())
        self.step_size = torch.where(thinner, 1.0, (self.step_size / 1.5).clamp(min=0.1))
        self._used = used
        self._since = 0
        return thinner
