"""Digits with a faint 0 or 1 at the edge, on which the class also depends (contextual budgets, Sec. 4.2).

The watermark is fainter than epsilon: uniform budgets can erase it, while learned budgets can be small there.
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
_SIDE = 8  # side of a watermark in pixels


class Watermarked(NamedTuple):
    """Images, uint8 (N, 1, H, W); labels in [0, 20), int64 (N,); row and column of each watermark's corner, (N,)."""

    images: Tensor
    labels: Tensor
    rows: Tensor
    columns: Tensor


def watermark(
    images: Tensor, digits: Tensor, generator: Generator, compositing: Compositing = "max", strength: float = 0.3
) -> Watermarked:
    """Add a watermark, a small 0 or 1, to each image; the class is digit + 10 * watermark.

    The watermark is a random image of a 0 or 1, resized to 12x12. Its middle 8x8 pixels times ``strength`` are put at a
    random row of the leftmost or the rightmost 8 columns.

    Args:
        images: images of digits, uint8 (N, 1, H, W); the watermarks are made from the zeros and ones among them.
        digits: classes of the images, int64 (N,).
        generator: generator of the draws.
        compositing: ``max`` takes the brighter of image and watermark, ``add`` their sum, at most 1; the paper does not
            specify this.
        strength: brightness of the watermark.

    Raises:
        SettingError: if the images have no zero or no one.
    """
    count, _, height, width = images.shape
    mark = torch.randint(2, (count,), generator=generator)
    on_right = torch.randint(2, (count,), generator=generator)
    rows = torch.randint(height - _SIDE + 1, (count,), generator=generator)
    source = torch.empty(count, dtype=torch.long)
    for digit in (0, 1):
        choices = (digits == digit).nonzero().squeeze(1)
        remedy = f"watermarks need images of the digit {digit}; add some"
        require(len(choices) > 0, "digits", sorted(set(digits.tolist())), remedy)
        source[mark == digit] = choices[torch.randint(len(choices), (int((mark == digit).sum()),), generator=generator)]
    small = F.interpolate(images[source].double(), size=(12, 12), mode="bilinear", antialias=True)[:, :, 2:10, 2:10]
    # each step is rounded, with 1e-6 added for exact halves, so that every machine's arithmetic gives the same bytes
    marks = (((small + 0.5 + 1e-6).floor() * strength) + 0.5 + 1e-6).floor().to(torch.uint8)

    columns = on_right * (width - _SIDE)
    offsets = torch.arange(_SIDE)
    pixels = ((rows[:, None] + offsets)[:, :, None] * width + (columns[:, None] + offsets)[:, None]).flatten(1)
    layer = torch.zeros(count, height * width, dtype=torch.uint8)
    layer.scatter_(1, pixels, marks.flatten(1))
    layer = layer.view_as(images)
    if compositing == "max":
        combined = torch.maximum(images, layer)
    else:
        combined = (images.short() + layer).clamp(max=255).to(torch.uint8)
    return Watermarked(combined, digits + 10 * mark, rows, columns)


class _Watermarks(ImageDataModule):
    """Mixin that adds watermarks to the images of the data set that follows it in the method resolution order.

    Args:
        compositing: combination of image and watermark, as in :func:`watermark`.
        watermark_seed: seed of the watermarks; runs and processes with the same seed have the same data set.
        **settings: settings of the data set whose images get watermarks.

    Raises:
        SettingError: if ``compositing`` is unknown or ``watermark_seed`` negative.
    """

    num_classes = 20

    def __init__(self, *, compositing: Compositing = "max", watermark_seed: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        require(compositing in ("max", "add"), "data.compositing", compositing, "give max or add")
        require(watermark_seed >= 0, "data.watermark_seed", watermark_seed, "give 0 or more")
        self.compositing, self.watermark_seed = compositing, watermark_seed
        self._plain: dict[Split, Tensor] = {}  # images without watermarks, for regions

    def watermarked(self, split: Split) -> Watermarked:
        """Images and labels of a split, and the positions of their watermarks."""
        plain: Any = super().load(split)  # type: ignore[safe-super]
        generator = seeded(self.watermark_seed, _SPLITS.index(split))
        return watermark(plain.images, plain.labels, generator, self.compositing)

    def regions(self, split: Split, indices: Tensor) -> dict[str, Tensor]:
        """Masks of watermark, digit and background, the most decisive region first.

        The watermark's pixels are those that it changes; the digit's are all other pixels that are not black.

        Args:
            split: split of the images.
            indices: indices of the images in the split, int64 (B,).

        Returns:
            Masks, bool (B, 1, H, W), that partition each image.
        """
        if split not in self._plain:
            images: Any = super().load(split)  # type: ignore[safe-super]
            self._plain[split] = images.images
        plain, watermarked = self._plain[split][indices], self.images(split).pixels(indices)
        mark = watermarked != plain
        digit = (plain > 0) & ~mark
        return {"watermark": mark, "digit": digit, "background": ~mark & ~digit}

    def load(self, split: Split) -> TensorImages:
        """Read one split and add watermarks to its images."""
        watermarked = self.watermarked(split)
        return TensorImages(watermarked.images, watermarked.labels, self.num_classes)


class WatermarkedMNIST(_Watermarks, MNIST):
    """MNIST with watermarks: 20 classes, 55,000 train, 5,000 validation, 10,000 test.

    Each split's watermarks are made from its own images; ``watermark_seed`` fixes them. Source: contextual budgets,
    Sec. 4.2. Other arguments and errors are those of :class:`ImageFiles`.
    """


class WatermarkedDigits(_Watermarks, Digits):
    """The embedded digits with watermarks: 20 classes, 1,298 train, 200 validation, 299 test; needs no download.

    The watermarks are made as in :class:`WatermarkedMNIST`. Other arguments are those of :class:`ImageDataModule`.
    """
