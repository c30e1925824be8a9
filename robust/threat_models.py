"""Threat models: which perturbed images there are around an image.

Images are float tensors in [0, 1] of shape (B, C, H, W); every epsilon and budget is in units of [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from robust.errors import require


class Box(NamedTuple):
    """Per-pixel interval ``lower <= x' <= upper``; both of shape (B, C, H, W)."""

    lower: Tensor
    upper: Tensor


class ThreatModel(Protocol):
    """What an attack searches and a bound encloses."""

    def interval(self, x: Tensor) -> Box:
        """Smallest per-pixel box in [0, 1] that holds every perturbed image of ``x`` (B, C, H, W)."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Nearest perturbed image of ``x`` to ``x_adv``; both (B, C, H, W)."""

    def sample(self, x: Tensor) -> Tensor:
        """Draw one perturbed image for each example of ``x`` (B, C, H, W)."""


class PixelBox:
    """Non-uniform budgets: |x'_i - x_i| <= budgets_i, cut to [0, 1] (contextual budgets, Sec. 3.1).

    Args:
        budgets: non-negative tensor that broadcasts to (B, C, H, W). It stays in the graph: the box is
            differentiable to the budgets, with gradient zero where the box is cut by [0, 1].
    """

    def __init__(self, budgets: Tensor) -> None:
        self.budgets = budgets

    def interval(self, x: Tensor) -> Box:
        """See :meth:`ThreatModel.interval`."""
        return Box((x - self.budgets).clamp(min=0.0), (x + self.budgets).clamp(max=1.0))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """See :meth:`ThreatModel.project`."""
        lower, upper = self.interval(x)
        return torch.minimum(torch.maximum(x_adv, lower), upper)

    def sample(self, x: Tensor) -> Tensor:
        """Uniform in the box; see :meth:`ThreatModel.sample`."""
        lower, upper = self.interval(x)
        return lower + (upper - lower) * torch.rand_like(x)


class LinfBall(PixelBox):
    """Uniform budgets: |x' - x|_inf <= epsilon, cut to [0, 1].

    Args:
        epsilon: radius in [0, 1].

    Raises:
        SettingError: if epsilon is outside [0, 1].
    """

    def __init__(self, epsilon: float) -> None:
        require(0.0 <= epsilon <= 1.0, "epsilon", epsilon, "give a radius in pixel units, between 0 and 1")
        super().__init__(torch.tensor(epsilon))
        self.epsilon = epsilon

    def interval(self, x: Tensor) -> Box:
        """See :meth:`ThreatModel.interval`."""
        return Box((x - self.epsilon).clamp(min=0.0), (x + self.epsilon).clamp(max=1.0))
