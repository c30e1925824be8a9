"""Fraction of examples that fail a per-example verdict."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class ErrorRate(Metric):
    """Failed examples over all examples; counts are summed over processes, so unequal shards stay exact.

    Lower is better. Clean error: failed = misclassified; verified error: failed = not certified (a misclassified
    example never is).
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    failed: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("failed", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, failed: Tensor) -> None:
        """Count a batch of verdicts, bool of shape (B,)."""
        # not in place: a state that inference mode has made cannot be changed outside it
        self.failed = self.failed + failed.sum()
        self.total = self.total + failed.numel()

    def compute(self) -> Tensor:
        """The rate in [0, 1], a scalar; NaN before the first example."""
        return self.failed / self.total
