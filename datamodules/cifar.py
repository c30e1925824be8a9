"""CIFAR-10 and CIFAR-100, in torchvision's file layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.files import HeldOutFiles
from datamodules.pickles import read_pickle

if TYPE_CHECKING:
    from torchvision import datasets


class CIFAR10(HeldOutFiles):
    """60,000 colour images of 32x32 pixels, 10 classes: 45,000 train, 5,000 validation, 10,000 test.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009). The files are pickles, which
    :mod:`datamodules.pickles` reads without running code in them. Arguments and errors are those of
    :class:`ImageFiles`.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    location = "cifar-10-batches-py"

    def fetch(self) -> None:
        """Download and unpack the archive with torchvision."""
        self._torchvision()(self.folder, download=True)

    def _torchvision(self) -> type[datasets.CIFAR10]:
        """Torchvision's class, which knows the files and their checksums."""
        from torchvision import datasets  # here, since the import takes seconds

        published: type[datasets.CIFAR10] = datasets.CIFAR10
        return published

    def published(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Images, uint8 of shape (N, 3, 32, 32), and labels, int64 of shape (N,)."""
        files = self._torchvision()
        listed = files.train_list if part == "train" else files.test_list
        meta = (files.meta["filename"], files.meta["md5"])
        paths = [self.checked(f"{self.location}/{name}", md5) for name, md5 in (meta, *listed)]
        parts = [self.read(path, lambda path=path: _entry(path)) for path in paths[1:]]  # type: ignore[misc]
        images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return images, labels


def _entry(path: Path) -> tuple[Tensor, Tensor]:
    """Images, uint8 of shape (N, 3, 32, 32), and labels, int64 of shape (N,), of one file."""
    entry = read_pickle(path)
    images = torch.from_numpy(np.asarray(entry["data"])).view(-1, 3, 32, 32)
    labels = torch.tensor(entry["labels"] if "labels" in entry else entry["fine_labels"])
    if images.dtype != torch.uint8 or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"{images.dtype} images {tuple(images.shape)}, {labels.dtype} labels {tuple(labels.shape)}")
    return images, labels


class CIFAR100(CIFAR10):
    """60,000 colour images of 32x32 pixels, 100 classes: 45,000 train, 5,000 validation, 10,000 test.

    The labels are the fine ones. Source, arguments and errors are those of :class:`CIFAR10`.
    """

    num_classes = 100
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    location = "cifar-100-python"

    def _torchvision(self) -> type[datasets.CIFAR10]:
        from torchvision import datasets

        published: type[datasets.CIFAR10] = datasets.CIFAR100
        return published
