"""Two images side by side, and a border whose colour says which of them is to be classified.

Source: contextual budgets, Sec. 4.3. Half of each image is irrelevant, which learned budgets can find out.
"""

from __future__ import annotations

from typing import Literal

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
    """As many doubled images as there are images.

    Args:
        images: uint8 (N, 1 or 3, H, W).
        labels: int64 (N,).
        generator: for what is drawn.
        pairing: the paper does not say which images are paired: ``permutation`` shows each once on the left and once
            on the right, ``independent`` draws both.

    Returns:
        Images, uint8 (N, 3, H + 4, 2 W): pure red (label of the left image) or pure green (of the right one) in the
        first four rows; and labels (N,).
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
    """The two data sets below: everything but the source of the images."""

    def _settle(self, pairing: Pairing, pairing_seed: int) -> None:
        require(pairing in ("permutation", "independent"), "data.pairing", pairing, "give permutation or independent")
        require(pairing_seed >= 0, "data.pairing_seed", pairing_seed, "give 0 or more")
        self.pairing: Pairing = pairing
        self.pairing_seed = pairing_seed

    def regions(self, split: Split, indices: Tensor) -> dict[str, Tensor]:
        """What the pixels of images are: the border, the half that decides, and the other, which is irrelevant.

        Args:
            split: whose images.
            indices: of the images in the split, int64 (B,).

        Returns:
            Masks, bool (B, 1, H, W), that part each image.
        """
        images = self.images(split).images[indices]
        border, left = torch.zeros(2, len(images), 1, *images.shape[2:], dtype=torch.bool)
        border[:, :, :BORDER] = True
        left[:, :, BORDER:, : images.shape[3] // 2] = True
        asks_left = (images[:, :1, :1, :1] == 255).expand_as(left)  # red
        right = ~border & ~left
        decisive, irrelevant = torch.where(asks_left, left, right), torch.where(asks_left, right, left)
        return {"border": border, "decisive": decisive, "irrelevant": irrelevant}

    def load(self, split: Split) -> TensorImages:
        """Build one split."""
        plain = super().load(split)  # type: ignore[safe-super]
        generator = seeded(self.pairing_seed, _SPLITS.index(split))
        return TensorImages(*double(plain.images, plain.labels, generator, self.pairing), self.num_classes)


class DoubledCIFAR10(_Pairs, CIFAR10):
    """Pairs of CIFAR-10 images, 3x36x64: 10 classes, 45,000 train, 5,000 validation, 10,000 test.

    Each split pairs its own images, fixed by ``pairing_seed``. A flip would move the decisive image to the other side:
    augment with ``flip: false``. Other arguments and errors are those of :class:`ImageFiles`.

    Args:
        pairing: which images are paired, see :func:`double`.
        pairing_seed: of the pairs; the data set is the same in every run and process of the same seed.
        root: folder of all data sets.
        download: fetch the files if they are absent.
        verify_checksums: refuse files that are not the published ones.
        augmentation: of training batches.
        batch_size: training images in a step, over all processes.
        eval_batch_size: images in a step of validation, test and prediction, over all processes.
        num_workers: loader processes.
        seed: of order and augmentation.

    Raises:
        SettingError: if ``pairing`` is unknown, or the augmentation flips.
    """

    image_shape = (3, 36, 64)

    def __init__(
        self,
        *,
        pairing: Pairing = "permutation",
        pairing_seed: int = 0,
        root: str | None = None,
        download: bool = False,
        verify_checksums: bool = True,
        augmentation: CropAndFlip | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        _refuse_flips(augmentation)
        super().__init__(
            root=root,
            download=download,
            verify_checksums=verify_checksums,
            augmentation=augmentation,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        self._settle(pairing, pairing_seed)


class DoubledDigits(_Pairs, Digits):
    """Pairs of the embedded digits in three channels, 3x32x56: 1,298 train, 200 validation, 299 test; no download.

    As :class:`DoubledCIFAR10`. Other arguments are those of :class:`ImageDataModule`.

    Args:
        pairing: which images are paired, see :func:`double`.
        pairing_seed: of the pairs.
        augmentation: of training batches.
        batch_size: training images in a step, over all processes.
        eval_batch_size: images in a step of validation, test and prediction, over all processes.
        num_workers: loader processes.
        seed: of order and augmentation.

    Raises:
        SettingError: if ``pairing`` is unknown, or the augmentation flips.
    """

    image_shape = (3, 32, 56)

    def __init__(
        self,
        *,
        pairing: Pairing = "permutation",
        pairing_seed: int = 0,
        augmentation: CropAndFlip | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        _refuse_flips(augmentation)
        super().__init__(
            augmentation=augmentation,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        self._settle(pairing, pairing_seed)


def _refuse_flips(augmentation: CropAndFlip | None) -> None:
    flips = augmentation is not None and augmentation.flip
    require(not flips, "data.augmentation.flip", True, "it would swap the two sides, not the label; give false")
