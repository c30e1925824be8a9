"""Means over regions of images, computed as if every image had the mean values of all images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class PixelMeans(Metric):
    """Each pixel's mean over all images of all processes, averaged over regions that differ from image to image.

    Compared with the values' own mean on a region, it separates what depends on the image from what depends on the
    pixel alone.

    Args:
        regions: number of regions.
        height: height of the images.
        width: width of the images.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    total: Tensor
    images: Tensor
    weights: Tensor
    having: Tensor

    def __init__(self, regions: int, height: int, width: int) -> None:
        super().__init__()
        shapes = {"total": (height, width), "images": (), "weights": (regions, height, width), "having": (regions,)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, masks: Tensor) -> None:
        """Add images: their values (B, H, W) and the masks of their regions (B, R, H, W)."""
        fractions = masks.double() / masks.sum((2, 3), keepdim=True).clamp(min=1)  # 0 where an image lacks the region
        self.total += values.double().sum(0)
        self.images += len(values)
        self.weights += fractions.sum(0)
        self.having += masks.any(3).any(2).sum(0)

    def compute(self) -> Tensor:
        """The means (R,): over a region's pixels, then over the images that have it; NaN if none has."""
        return (self.weights * (self.total / self.images)).sum((1, 2)) / self.having
