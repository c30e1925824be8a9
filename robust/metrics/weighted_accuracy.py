"""Accuracy in which vulnerable examples count more."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedAccuracy(Metric):
    """sum_i s_i 1_i / sum_i s_i with s_i = exp(-alpha * margin_i), for several alphas at once.

    1_i is whether the attacked image i is classified correctly, margin_i its
    :func:`robust.losses.probability_margin`. Both sums are over all examples of all processes, in float64: means of
    batches would be another metric. It is A_sa of images that plain PGD found, and A_tr of those that PGD on the
    weighted loss found (weighted minimax risk, evaluation metrics); alpha = 0 gives the plain accuracy.

    Args:
        alphas: strengths of the weight; vulnerable examples count more where it is positive.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, alphas: list[float]) -> None:
        super().__init__()
        self.alphas = alphas
        for name in ("correct", "total", "squares"):
            self.add_state(name, torch.zeros(len(alphas), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, margins: Tensor, correct: Tensor) -> None:
        """Add a batch: probability margins (B,) in [-1, 1] and whether each is classified correctly, bool (B,)."""
        alphas = torch.tensor(self.alphas, dtype=torch.float64, device=margins.device)
        weights = (-alphas[:, None] * margins.double()).exp()
        self.correct = self.correct + (weights * correct).sum(1)
        self.total = self.total + weights.sum(1)
        self.squares = self.squares + weights.square().sum(1)

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` in [0, 1] and ``effective_samples``, (sum s)^2 / sum s^2, both (A,); NaN without examples."""
        return {"accuracy": self.correct / self.total, "effective_samples": self.total.square() / self.squares}
