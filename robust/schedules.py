"""Learning-rate schedules that move with every batch, as pure functions of the time in epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from robust.errors import require


class PiecewiseLinear(LRScheduler):
    """Multiplies the optimizer's learning rate by a factor that is linear between given epochs.

    The base of the methods moves it before each batch, to the time at which that batch ends: batch b (from 0) of L in
    epoch e (from 0) is trained at e + (b + 1) / L. Before the first epoch given the factor is the first one, after
    the last epoch the last one. Source: multi-norm training (MNG-AC), 0 to 1 in epoch 12, to 0 in epoch 30.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    >>> schedule = PiecewiseLinear(optimizer, epochs=[0, 12, 30], factors=[0.0, 1.0, 0.0])
    >>> rates = []
    >>> for time in (0, 6, 12, 21, 40):
    ...     schedule.move_to(time)
    ...     rates += schedule.get_last_lr()
    >>> rates
    [0.0, 0.25, 0.5, 0.25, 0.0]

    Args:
        optimizer: optimizer whose configured learning rate a factor of 1 gives.
        epochs: increasing times, in epochs.
        factors: factors of the learning rate at these times, not negative.

    Raises:
        SettingError: if the lengths differ, the epochs do not increase, or a factor is negative.
    """

    def __init__(self, optimizer: Optimizer, epochs: Sequence[float], factors: Sequence[float]) -> None:
        rising = all(before < after for before, after in pairwise(epochs))
        require(len(epochs) > 0 and rising, "epochs", list(epochs), "give increasing epochs, at least one")
        fits = len(factors) == len(epochs) and min(factors) >= 0
        remedy = f"give {len(epochs)} factors of at least 0, one for each epoch"
        require(fits, "factors", list(factors), remedy)
        self.epochs, self.factors = list(epochs), list(factors)
        self.time = 0.0
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Each parameter group's learning rate at the current time."""
        factor = float(np.interp(self.time, self.epochs, self.factors))
        return [float(rate) * factor for rate in self.base_lrs]

    def move_to(self, time: float) -> None:
        """Set the learning rates of that time, in epochs, whatever they were before."""
        self.time, self.last_epoch = time, int(time)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = list(self.get_lr())


class EachStep(LRScheduler):
    """Moves another schedule with every step in place of every epoch.

    ``OneCycleLR`` and ``CyclicLR`` do so by themselves; for the others a count of epochs becomes one of steps.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    >>> schedule = EachStep(optimizer, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5))
    >>> for _ in range(2):
    ...     optimizer.step()
    ...     schedule.step()
    >>> schedule.get_last_lr(), schedule.last_epoch
    ([0.25], 2)

    Args:
        optimizer: whose learning rate moves.
        schedule: makes the schedule of an optimizer.
    """

    def __init__(self, optimizer: Optimizer, schedule: Callable[[Optimizer], LRScheduler]) -> None:
        self.optimizer = optimizer
        self.schedule = schedule(optimizer)

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """Steps that it has moved."""
        return self.schedule.last_epoch

    @property
    def base_lrs(self) -> list[float]:  # type: ignore[override]
        """The learning rates before the schedule."""
        return self.schedule.base_lrs  # type: ignore[return-value]

    def step(self, epoch: int | None = None) -> None:
        """Move by a step."""
        self.schedule.step()

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Each parameter group's learning rate."""
        return self.schedule.get_last_lr()  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Any]:
        """The schedule's."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the schedule its state back."""
        self.schedule.load_state_dict(state_dict)
