"""Augmentation of whole batches by torch operations, on the device where the batch is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from robust.errors import require

_MODES = {"zero": "constant", "reflect": "reflect", "edge": "replicate"}


class Placement(NamedTuple):
    """What was drawn for each image: the crop's first row and column, int64, and whether it is flipped; all (B,)."""

    rows: Tensor
    columns: Tensor
    flipped: Tensor


class CropAndFlip:
    """Random crop out of the padded image, at the image's own size, and random horizontal flip.

    The usual augmentation of CIFAR-10 (He et al. 2016, Sec. 4.2). Draws are made on the CPU, so that a seed gives
    the same images on every device; the images are moved where they are.

    Args:
        padding: pixels on each side; 0 switches the crop off.
        fill: what they hold: zeros, the image mirrored at its edge, or its edge repeated.
        flip: flip half of the images.

    Raises:
        SettingError: if ``padding`` is negative or ``fill`` unknown.
    """

    def __init__(self, padding: int = 4, fill: Literal["zero", "reflect", "edge"] = "zero", flip: bool = True) -> None:
        require(padding >= 0, "data.augmentation.padding", padding, "give 0 (no crop) or more pixels")
        require(fill in _MODES, "data.augmentation.fill", fill, "give zero, reflect or edge")
        self.padding, self.fill, self.flip = padding, fill, flip

    def check(self, image_shape: Sequence[int]) -> None:
        """Check that the padding fits images of shape (C, H, W).

        Raises:
            SettingError: if it does not.
        """
        side = min(image_shape[-2:])
        largest = side - 1 if self.fill == "reflect" else side
        remedy = f"{self.fill} takes at most {largest} on images of {side} pixels a side"
        require(self.padding <= largest, "data.augmentation.padding", self.padding, remedy)

    def draw(self, count: int, generator: Generator | None = None) -> Placement:
        """Draw for ``count`` images, from torch's generator unless another is given."""
        rows, columns = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        flipped = torch.rand(count, generator=generator) < 0.5
        return Placement(rows, columns, flipped & self.flip)

    def apply(self, images: Tensor, placement: Placement) -> Tensor:
        """The images (B, C, H, W) placed as drawn, same shape.

        Raises:
            SettingError: if the padding does not fit the images.
        """
        self.check(images.shape[1:])
        count, channels, height, width = images.shape
        rows, columns, flipped = (part.to(images.device, non_blocking=True) for part in placement)
        row = rows[:, None] + torch.arange(height, device=images.device)
        column = torch.arange(width, device=images.device).expand(count, -1)
        column = columns[:, None] + torch.where(flipped[:, None], width - 1 - column, column)
        padded = F.pad(images, (self.padding,) * 4, _MODES[self.fill]).flatten(2)
        pixel = row[:, :, None] * (width + 2 * self.padding) + column[:, None]
        return padded.gather(2, pixel.flatten(1)[:, None].expand(-1, channels, -1)).view_as(images)

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw and apply, images (B, C, H, W) to the same shape."""
        return self.apply(images, self.draw(len(images), generator))
