"""Digits with a faint second digit at the edge on which half of the label depends (contextual budgets, Sec. 4.2).

The watermark is fainter than epsilon: uniform budgets erase it, learned ones can spare it.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from datamodules.base import ImageDataModule, Split
from datamodules.digits import Digits
from datamodules.loading import TensorImages, seeded
from datamodules.mnist import MNIST
from robust.errors import require

Compositing = Literal["max", "add"]
_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_SIDE = 8  # of a watermark, in pixels


class Watermarked(NamedTuple):
    """Images, uint8 (N, 1, H, W); labels in [0, 20), int64 (N,); row and column of each watermark's corner, (N,)."""

    images: Tensor
    labels: Tensor
    rows: Tensor
    columns: Tensor


def watermark(
    images: Tensor, digits: Tensor, generator: Generator, compositing: Compositing = "max", strength: float = 0.3
) -> Watermarked:
    """Put a watermark, a small 0 or 1, on each image; its class is digit + 10 * watermark.

    A random image of that digit is resized to 12x12, its middle 8x8 pixels times ``strength`` go to a random row of the
    leftmost or the rightmost 8 columns.

    Args:
        images: digits, uint8 (N, 1, H, W), with zeros and ones among them; the watermarks are made of these.
        digits: their classes, int64 (N,).
        generator: for what is drawn.
        compositing: the paper does not say how the two are combined: the brighter of them, or their sum cut at 1.
        strength: brightness of the watermark.

    Raises:
        SettingError: if there is no zero or no one among the images.
    """
    count, _, height, width = images.shape
    drawn = torch.randint(2, (count,), generator=generator)
    right = torch.randint(2, (count,), generator=generator)
    rows = torch.randint(height - _SIDE + 1, (count,), generator=generator)
    source = torch.empty(count, dtype=torch.long)
    for mark in (0, 1):
        choices = (digits == mark).nonzero().squeeze(1)
        require(len(choices) > 0, "digits", sorted(set(digits.tolist())), f"watermarks need images of the digit {mark}")
        source[drawn == mark] = choices[torch.randint(len(choices), (int((drawn == mark).sum()),), generator=generator)]
    small = F.interpolate(images[source].double(), size=(12, 12), mode="bilinear", antialias=True)[:, :, 2:10, 2:10]
    # whole numbers at each step, halves up with a margin, that each machine's arithmetic gives the same bytes
    marks = (((small + 0.5 + 1e-6).floor() * strength) + 0.5 + 1e-6).floor().to(torch.uint8)

    columns = right * (width - _SIDE)
    at = torch.arange(_SIDE)
    pixels = ((rows[:, None] + at)[:, :, None] * width + (columns[:, None] + at)[:, None]).flatten(1)
    layer = torch.zeros(count, height * width, dtype=torch.uint8)
    layer.scatter_(1, pixels, marks.flatten(1))
    layer = layer.view_as(images)
    if compositing == "max":
        combined = torch.maximum(images, layer)
    else:
        combined = (images.short() + layer).clamp(max=255).to(torch.uint8)
    return Watermarked(combined, digits + 10 * drawn, rows, columns)


class _Watermarks(ImageDataModule):
    """Everything of the two data sets below but the source of the images.

    Args:
        compositing: how image and watermark are combined, see :func:`watermark`.
        watermark_seed: of the watermarks; the data set is the same in every run and process of the same seed.
        **settings: those of the source of the images.

    Raises:
        SettingError: if ``compositing`` is unknown or ``watermark_seed`` negative.
    """

    num_classes = 20

    def __init__(self, *, compositing: Compositing = "max", watermark_seed: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        require(compositing in ("max", "add"), "data.compositing", compositing, "give max or add")
        require(watermark_seed >= 0, "data.watermark_seed", watermark_seed, "give 0 or more")
        self.compositing, self.watermark_seed = compositing, watermark_seed
        self._plain: dict[Split, Tensor] = {}  # images without watermarks, where regions are asked for

    def watermarked(self, split: Split) -> Watermarked:
        """The images of a split with what is known of their watermarks."""
        plain = super().load(split)  # type: ignore[safe-super]
        generator = seeded(self.watermark_seed, _SPLITS.index(split))
        return watermark(plain.images, plain.labels, generator, self.compositing)

    def regions(self, split: Split, indices: Tensor) -> dict[str, Tensor]:
        """What the pixels of images are, the most decisive first: watermark, digit, background.

        A watermark's pixels are those that it changes, a digit's the others that are not black.

        Args:
            split: whose images.
            indices: of the images in the split, int64 (B,).

        Returns:
            Masks, bool (B, 1, H, W), that part each image.
        """
        if split not in self._plain:
            self._plain[split] = super().load(split).images  # type: ignore[safe-super]
        plain, made = self._plain[split][indices], self.images(split).images[indices]
        mark = made != plain
        digit = (plain > 0) & ~mark
        return {"watermark": mark, "digit": digit, "background": ~mark & ~digit}

    def load(self, split: Split) -> TensorImages:
        """Build one split."""
        made = self.watermarked(split)
        return TensorImages(made.images, made.labels, self.num_classes)


class WatermarkedMNIST(_Watermarks, MNIST):
    """MNIST with watermarks: 20 classes, 55,000 train, 5,000 validation, 10,000 test.

    Each split's watermarks come from its own images and are fixed by ``watermark_seed``. Source: contextual budgets,
    Sec. 4.2. Other arguments and errors are those of :class:`ImageFiles`.
    """


class WatermarkedDigits(_Watermarks, Digits):
    """The embedded digits with watermarks: 20 classes, 1,298 train, 200 validation, 299 test; needs no download.

    As :class:`WatermarkedMNIST`. Other arguments are those of :class:`ImageDataModule`.
    """
