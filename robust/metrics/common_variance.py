"""Fraction of the budgets' variance that one map for all images explains."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class CommonVariance(Metric):
    """Fraction of the variance of log budgets that their mean over the images has, and that mean, over all processes.

    1: every image has the same budgets, a map that depends on the pixel alone. 0: the budgets' mean over the images is
    the same at every pixel. With N unrelated maps it is about 1 / N. Budgets without any variance have the fraction 1.

    >>> metric = CommonVariance((1, 1, 2))
    >>> metric.update(torch.tensor([[1.0, 2.0], [1.0, 2.0]]).view(2, 1, 1, 2))
    >>> round(metric.compute().item(), 4)
    1.0
    >>> metric.update(torch.tensor([[2.0, 1.0], [2.0, 1.0]]).view(2, 1, 1, 2))  # the mean logs are now equal
    >>> round(metric.compute().item(), 4)
    0.0
    >>> metric.common().flatten()
    tensor([1.4142, 1.4142], dtype=torch.float64)

    Args:
        shape: shape of the budgets, (C, H, W).
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    logs: Tensor
    squares: Tensor
    images: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        for name, size in (("logs", shape), ("squares", ()), ("images", ())):
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, budgets: Tensor) -> None:
        """Add the budgets (B, C, H, W) of images, positive."""
        logs = budgets.double().log()
        self.logs += logs.sum(0)
        self.squares += logs.square().flatten(1).mean(1).sum()
        self.images += len(logs)

    def compute(self) -> Tensor:
        """The fraction, in [0, 1]."""
        mean = self.logs / self.images
        total = self.squares / self.images - mean.mean().square()
        common = mean.var(correction=0)
        return torch.where(total > 1e-12 * self.squares / self.images, common / total, 1.0).clamp(0, 1)

    def common(self) -> Tensor:
        """The budgets (C, H, W) of the common map: the exponential of the mean log budget, over all processes.

        It has the images' mean log volume, and lies in their range.
        """
        with self.sync_context():
            return (self.logs / self.images).exp()
