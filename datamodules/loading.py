"""Labelled images, in memory or in files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from robust.errors import SettingError, require

Indices = NDArray[np.int64] | Tensor | list[int]


def seeded(*key: int) -> torch.Generator:
    """A generator on the CPU whose stream depends on a key of non-negative integers."""
    # torch uses only 32 bits of a seed; SeedSequence mixes the key, since different keys can have the same sum
    mixed = np.random.SeedSequence(key).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


class Batch(NamedTuple):
    """Float32 images in [0, 1] of shape (B, C, H, W), int64 labels of shape (B,)."""

    images: Tensor
    labels: Tensor


def scaled(images: Tensor) -> Tensor:
    """Scale bytes to float32 in [0, 1]; floats stay the same."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


class LabelledImages(Dataset[Batch], ABC):
    """Labelled images that are read a whole batch at a time.

    Args:
        labels: labels, int64, shape (N,).
        image_shape: shape of an image, (C, H, W).
    """

    def __init__(self, labels: Tensor, image_shape: Sequence[int]) -> None:
        self.labels = labels
        self.image_shape = tuple(image_shape)

    @abstractmethod
    def pixels(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (B,), uint8 or float32 in [0, 1], shape (B, C, H, W)."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, indices: Indices) -> Batch:
        """The batch of images at ``indices``, shape (B,)."""
        images, labels = self.raw(torch.as_tensor(indices))
        return Batch(scaled(images), labels)

    def raw(self, indices: Tensor) -> Batch:
        """The batch at ``indices``, with images as they are stored."""
        return Batch(self.pixels(indices), self.labels.index_select(0, indices))


class TensorImages(LabelledImages):
    """Labelled images held in memory as bytes.

    Args:
        images: images, uint8, shape (N, C, H, W).
        labels: labels, int64 in [0, num_classes), shape (N,).
        num_classes: number of classes.

    Raises:
        SettingError: if a shape, a type or a label is wrong, or there are no images.
    """

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int) -> None:
        given = (images.dtype, tuple(images.shape))
        require(images.dtype == torch.uint8 and images.ndim == 4, "images", given, "give uint8 of shape (N, C, H, W)")
        require(len(images) > 0, "images", given, "give at least one image")
        given = (labels.dtype, tuple(labels.shape))
        fits = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
        require(fits, "labels", given, f"give int64 of shape ({len(images)},), one for each image")
        span = (int(labels.min()), int(labels.max()))
        require(span[0] >= 0 and span[1] < num_classes, "labels", span, f"give classes from 0 to {num_classes - 1}")
        super().__init__(labels, images.shape[1:])
        self.images = images

    def pixels(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (B,), uint8 of shape (B, C, H, W)."""
        return self.images.index_select(0, indices)  # copies whole images, ten times as fast as indexing


class ImageFileError(SettingError):
    """The error for a file that cannot be decoded; a loader's worker can pass it to the run.

    Args:
        message: message, or the traceback of a worker, whose last line is the message.
    """

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message.rstrip().split("\n")[-1].split("ImageFileError: ")[-1])


class FileImages(LabelledImages):
    """Labelled images that are decoded from their files when a batch asks for them.

    Args:
        paths: paths of the N images.
        labels: labels, int64, shape (N,).
        image_shape: shape of an image, (C, H, W).
        read: function that decodes a file to uint8 of shape (C, H, W), and raises :class:`ImageFileError`.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, image_shape: Sequence[int], read: Callable[[Path], Tensor]
    ) -> None:
        super().__init__(labels, image_shape)
        self.paths, self.read = paths, read

    def pixels(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (B,), uint8 of shape (B, C, H, W)."""
        images = torch.empty(len(indices), *self.image_shape, dtype=torch.uint8)  # its part of a batch may be empty
        for position, index in enumerate(indices.tolist()):
            images[position] = self.read(self.paths[index])
        return images

    def in_memory(self, num_classes: int) -> TensorImages:
        """All images, decoded in parallel."""
        images = torch.empty(len(self.paths), *self.image_shape, dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
            for index, image in enumerate(pool.map(self.read, self.paths)):
                images[index] = image
        return TensorImages(images, self.labels, num_classes)


Item = TypeVar("Item")


class _Reader(Dataset[Item]):
    """Reads batches of images; subclasses choose what a batch holds.

    Args:
        images: images to read.
    """

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)


class RawImages(_Reader[Batch]):
    """Images that are read as bytes and scaled on the device, so that a quarter of the memory of floats is copied."""

    def __getitem__(self, indices: Indices) -> Batch:
        """The batch of images at ``indices``, shape (B,), as they are stored."""
        return self.images.raw(torch.as_tensor(indices))


class Unlabelled(_Reader[Tensor]):
    """Images without their labels."""

    def __getitem__(self, indices: Indices) -> Tensor:
        """The images at ``indices``, shape (B,), as they are stored."""
        return self.images.pixels(torch.as_tensor(indices))
