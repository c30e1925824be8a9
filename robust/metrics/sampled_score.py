"""A robustness score, estimated from samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class SampledScore(Metric):
    """Means of the robustness function over images, for each radius, and what follows from them; in float64.

    Source: general robustness framework (Tibo, Jaeger, Larsen 2022), eq. 9.

    Args:
        epsilons: Sigma, the radii (E,).
        constant: rho of a constant classifier at each radius (E,): H(1) times G's factor.
        diameter: d, the largest radius.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, epsilons: Tensor, constant: Tensor, diameter: float) -> None:
        super().__init__()
        self.diameter = diameter
        self.register_buffer("epsilons", epsilons.double())
        self.register_buffer("constant", constant.double())
        self.add_state("total", torch.zeros(len(epsilons), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, robustness: Tensor) -> None:
        """Add a batch: rho(x_i, epsilon), (B, E)."""
        self.total = self.total + robustness.double().sum(0)
        self.images = self.images + len(robustness)

    def compute(self) -> dict[str, Tensor]:
        """The score in its three forms, and its curve.

        Returns:
            ``mean`` over images and radii (eq. 9); ``integral`` over [0, d], d times that; ``normalized``, the mean
            over that of a constant classifier, in [0, 1]; ``curve`` (E,), the mean over images for each radius.
        """
        curve = self.total / self.images
        assert isinstance(self.constant, Tensor)
        mean = curve.mean()
        return {
            "mean": mean,
            "integral": self.diameter * mean,
            "normalized": mean / self.constant.mean(),
            "curve": curve,
        }
