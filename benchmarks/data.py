"""Images per second of our training batches and of torchvision's usual pipeline, in one run.

    uv run benchmarks/data.py [--threads N] [--rounds N] [--images N]

Ours: images in memory as bytes, a batch at a time, crop and flip on the batch. Torchvision's: its Dataset, PIL
transforms and a DataLoader, with the better of 0 and as many workers as there are CPU cores. Pixels are random, since
the speed does not depend on them; batches have 128 images; rates are medians over the rounds, measured in turn.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the checkout's own packages are measured

from callbacks.results import git_commit, installed_versions
from datamodules import CropAndFlip, ImageDataModule
from datamodules.base import Split
from datamodules.loading import RawImages, ResumableLoader, ShardedBatches, TensorImages, scaled

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


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=25_600)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cores = os.cpu_count() or 1
    print(f"{platform.processor() or platform.machine()}, {cores} cores, {options.threads} threads; ", end="")
    print(f"{installed_versions()}; commit {git_commit()}; {options.images} images, {options.rounds} rounds\n")
    print(f"| data | ours, images/s | torchvision, 0 workers | {cores} workers | ours over the better |")
    print("|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        pipelines = [ours(shape, options.images), *(usual(shape, options.images, n) for n in (0, cores))]
        rounds = [[rate(epoch) for epoch in pipelines] for _ in range(options.rounds)]
        own, alone, several = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {name} | {own:,.0f} | {alone:,.0f} | {several:,.0f} | {own / max(alone, several):.1f} |")


if __name__ == "__main__":
    main()
