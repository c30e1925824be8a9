"""Fraction of verdicts that are correct."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Accuracy(Metric):
    """Correct verdicts over all verdicts, as whole numbers that are summed over processes: exact however data is split.

    Args:
        num_samples: verdicts on each example: more than one where a network draws random numbers.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor) -> None:
        """Count a batch: how many of each example's verdicts are correct, whole numbers or bool of shape (B,)."""
        # not in place: a state that inference mode has made cannot be changed outside it
        self.correct = self.correct + correct.sum()
        self.total = self.total + correct.numel() * self.num_samples

    def compute(self) -> Tensor:
        """The fraction in [0, 1], a scalar; NaN before the first example."""
        return self.correct / self.total


class AccuracyStd(Metric):
    """Standard deviation, over passes of a network that draws random numbers, of the accuracy on all examples.

    Args:
        passes: number of them; with one, it is NaN.
    """

    is_differentiable = False
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros(passes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor) -> None:
        """Count a batch: whether each pass is correct, bool (P, B)."""
        self.correct = self.correct + correct.sum(1)
        self.total = self.total + correct.shape[1]

    def compute(self) -> Tensor:
        """The std of the accuracy in [0, 1], unbiased; a scalar."""
        return (self.correct / self.total).std()
