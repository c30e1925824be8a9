"""Our training batches and those of torchvision's usual pipeline, for the benchmark ``data``.

Ours: images in memory as bytes, a batch at a time, crop and flip on the batch. Torchvision's: its Dataset, PIL
transforms and a DataLoader. Pixels are random, since the speed does not depend on them; batches have 128 images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from datamodules import CropAndFlip, ImageDataModule
from datamodules.base import Split
from datamodules.batches import ResumableLoader, ShardedBatches
from datamodules.loading import RawImages, TensorImages, scaled

BATCH = 128
SHAPES = {"MNIST": (1, 28, 28), "CIFAR-10 with crop and flip": (3, 32, 32)}
Epoch = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class RandomImages(ImageDataModule):
    """``count`` random images in our pipeline."""

    num_classes = 10

    def __init__(self, shape: tuple[int, int, int], count: int, augmentation: CropAndFlip | None) -> None:
        super().__init__(batch_size=BATCH, augmentation=augmentation)
        self.image_shape = shape
        self.count = count

    def load(self, split: Split) -> TensorImages:
        """Random pixels and classes."""
        images = torch.randint(256, (self.count, *self.image_shape), dtype=torch.uint8)
        return TensorImages(images, torch.randint(10, (self.count,)), 10)


def ours(shape: tuple[int, int, int], count: int) -> Epoch:
    """Our batches as in a Trainer: bytes, then augmentation and scaling as in the data module's hook."""
    augmentation = CropAndFlip() if shape[0] == 3 else None
    images = RandomImages(shape, count, augmentation).images("train")
    sampler = ShardedBatches(images, BATCH, shuffle=True)
    loader = ResumableLoader(dataset=RawImages(images), batch_size=None, sampler=sampler)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in loader:
            yield scaled(pixels if augmentation is None else augmentation(pixels)), labels

    return epoch


def usual(shape: tuple[int, int, int], count: int, workers: int) -> Epoch:
    """Torchvision's dataset with random pixels instead of files."""
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if shape[0] == 3 else []
    kind = datasets.CIFAR10 if shape[0] == 3 else datasets.MNIST
    data = kind.__new__(kind)
    data.transform, data.target_transform = transforms.Compose([*steps, transforms.ToTensor()]), None
    pixels = np.random.default_rng(0).integers(256, size=(count, *shape[1:], 3)[: 4 if shape[0] == 3 else 3])
    data.data = pixels.astype(np.uint8) if shape[0] == 3 else torch.from_numpy(pixels.astype(np.uint8))
    data.targets = torch.randint(10, (count,)) if shape[0] == 1 else torch.randint(10, (count,)).tolist()
    return lambda: iter(DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers))


def rate(epoch: Epoch) -> float:
    """Images per second."""
    start, count = time.perf_counter(), 0
    for images, _ in epoch():
        count += len(images)
    return count / (time.perf_counter() - start)
