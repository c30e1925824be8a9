"""Two images side by side, and a border whose colour says which one to classify.

Source: contextual budgets, Sec. 4.3. Half of each image is irrelevant, and learned budgets can be large there.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Generator, Tensor

from datamodules.augmentation import CropAndFlip
from datamodules.base import ImageDataModule, Split
from datamodules.cifar import CIFAR10
from datamodules.digits import Digits
from datamodules.loading import TensorImages, seeded
from robust.errors import require

Pairing = Literal["permutation", "independent"]
BORDER = 4  # rows above the two images
_SPLITS: tuple[Split, ...] = ("train", "val", "test")


def double(images: Tensor, labels: Tensor, generator: Generator, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """Draw N pairs of N images.

    Args:
        images: uint8 (N, 1 or 3, H, W).
        labels: int64 (N,).
        generator: generator of the draws.
        pairing: ``permutation`` shows each image once on the left and once on the right, ``independent`` draws both
            sides; the paper does not specify it.

    Returns:
        Images, uint8 (N, 3, H + 4, 2 W), whose first four rows are pure red if the label is that of the left image, or
        pure green if it is that of the right one; and the labels (N,).
    """
    count, _, height, width = images.shape
    if pairing == "permutation":
        left, right = torch.arange(count), torch.randperm(count, generator=generator)
    else:
        left, right = torch.randint(count, (2, count), generator=generator)
    use_right = torch.randint(2, (count,), generator=generator).bool()
    doubled = torch.zeros(count, 3, BORDER + height, 2 * width, dtype=torch.uint8)
    doubled[:, :, BORDER:, :width] = images[left]
    doubled[:, :, BORDER:, width:] = images[right]
    doubled[torch.arange(count), use_right.long(), :BORDER] = 255
    return doubled, torch.where(use_right, labels[right], labels[left])


class _Pairs(ImageDataModule):
    """Mixin that pairs the images of the data set that follows it in the method resolution order.

    Args:
        pairing: choice of the pairs, as in :func:`double`.
        pairing_seed: seed of the pairs; runs and processes with the same seed have the same data set.
        augmentation: augmentation of training batches.
        **settings: settings of the data set whose images are paired.

    Raises:
        SettingError: if ``pairing`` is unknown, or the augmentation flips.
    """

    def __init__(
        self,
        *,
        pairing: Pairing = "permutation",
        pairing_seed: int = 0,
        augmentation: CropAndFlip | None = None,
        **settings: Any,
    ) -> None:
        flips = augmentation is not None and augmentation.flip
        remedy = "a flip would swap the two sides, but not the label; give false"
        require(not flips, "data.augmentation.flip", True, remedy)
        super().__init__(augmentation=augmentation, **settings)
        require(pairing in ("permutation", "independent"), "data.pairing", pairing, "give permutation or independent")
        require(pairing_seed >= 0, "data.pairing_seed", pairing_seed, "give 0 or more")
        self.pairing: Pairing = pairing
        self.pairing_seed = pairing_seed

    def regions(self, split: Split, indices: Tensor) -> dict[str, Tensor]:
        """Masks of the border, of the half that decides the class, and of the irrelevant half.

        Args:
            split: split of the images.
            indices: indices of the images in the split, int64 (B,).

        Returns:
            Masks, bool (B, 1, H, W), that partition each image.
        """
        images = self.images(split).pixels(indices)
        border, left = torch.zeros(2, len(images), 1, *images.shape[2:], dtype=torch.bool)
        border[:, :, :BORDER] = True
        left[:, :, BORDER:, : images.shape[3] // 2] = True
        asks_left = (images[:, :1, :1, :1] == 255).expand_as(left)  # red
        right = ~border & ~left
        decisive, irrelevant = torch.where(asks_left, left, right), torch.where(asks_left, right, left)
        return {"border": border, "decisive": decisive, "irrelevant": irrelevant}

    def load(self, split: Split) -> TensorImages:
        """Read one split and pair its images."""
        plain: Any = super().load(split)  # type: ignore[safe-super]
        generator = seeded(self.pairing_seed, _SPLITS.index(split))
        return TensorImages(*double(plain.images, plain.labels, generator, self.pairing), self.num_classes)


class DoubledCIFAR10(_Pairs, CIFAR10):
    """Pairs of CIFAR-10 images, 3x36x64: 10 classes, 45,000 train, 5,000 validation, 10,000 test.

    Each split pairs its own images; ``pairing_seed`` fixes the pairs. A flip would move the decisive image to the other
    side, so augment with ``flip: false``. Other arguments and errors are those of :class:`ImageFiles`.
    """

    image_shape = (3, 36, 64)


class DoubledDigits(_Pairs, Digits):
    """Pairs of the embedded digits in three channels, 3x32x56: 1,298 train, 200 validation, 299 test; no download.

    The pairs are made as in :class:`DoubledCIFAR10`. Other arguments are those of :class:`ImageDataModule`.
    """

    image_shape = (3, 32, 56)
