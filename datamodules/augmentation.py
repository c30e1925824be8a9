"""Augmentation of whole batches by torch operations, on the batch's device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from robust.errors import require

_MODES = {"zero": "constant", "reflect": "reflect", "edge": "replicate"}


class Placement(NamedTuple):
    """Drawn crops and flips: first row and first column, int64 (B,), and whether to flip, bool (B,)."""

    rows: Tensor
    columns: Tensor
    flipped: Tensor


class CropAndFlip:
    """Random crop of the padded image to its original size, and random horizontal flip.

    The usual augmentation of CIFAR-10 (He et al. 2016, Sec. 4.2). It draws on the CPU, so that a seed gives the same
    images on every device.

    Args:
        padding: number of pixels that are added on each side before the crop; 0 switches the crop off.
        fill: values of the padding: zeros, the image mirrored at its edge, or its repeated edge.
        flip: whether to flip each image with probability 0.5.

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
        """Draw crops and flips for ``count`` images, by default from torch's global generator."""
        rows, columns = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        flipped = torch.rand(count, generator=generator) < 0.5
        return Placement(rows, columns, flipped & self.flip)

    def apply(self, images: Tensor, placement: Placement) -> Tensor:
        """Crop and flip images (B, C, H, W) as drawn; the shape stays the same.

        Raises:
            SettingError: if the padding does not fit the images.
        """
        self.check(images.shape[1:])
        channels, height, width = images.shape[1:]
        rows, columns, flipped = (part.to(images.device, non_blocking=True) for part in placement)
        stride = width + 2 * self.padding  # pixels in a row of the padded image, which are numbered row by row
        row, column = (torch.arange(side, device=images.device) for side in (height, width))
        window = stride * row[:, None] + column
        windows = torch.stack([window, window.flip(1)]).flatten(1)
        pixels = windows.index_select(0, flipped.long()).add_((stride * rows + columns)[:, None])
        padded = F.pad(images, (self.padding,) * 4, _MODES[self.fill]).flatten(2)
        return padded.gather(2, pixels[:, None].expand(-1, channels, -1)).view_as(images)

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw and apply crops and flips to images (B, C, H, W)."""
        return self.apply(images, self.draw(len(images), generator))
