"""MNIST, in torchvision's file layout."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from datamodules.files import VALIDATION_IMAGES, HeldOutFiles


class MNIST(HeldOutFiles):
    """70,000 grey digits of 28x28 pixels, 10 classes: 55,000 train, 5,000 validation (the last), 10,000 test.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits (1998). Arguments and errors are
    those of :class:`ImageFiles`.
    """

    num_classes = 10
    image_shape = (1, 28, 28)
    url = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    location = "MNIST/raw"
    # size in bytes and md5 of each unpacked file
    files: ClassVar[dict[str, tuple[int, str]]] = {
        "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
        "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
        "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
        "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
    }

    def fetch(self) -> None:
        """Download the files with torchvision."""
        from torchvision import datasets  # here, since the import takes seconds

        datasets.MNIST(self.folder, download=True)

    def validation(self, size: int) -> Tensor:
        """Mask of the last 5,000 training images, which are for validation; bool, shape (size,)."""
        return torch.arange(size) >= size - VALIDATION_IMAGES

    def published(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Images, uint8 of shape (N, 1, 28, 28), and labels, int64 of shape (N,)."""
        from torchvision.datasets.mnist import read_image_file, read_label_file

        prefix = "train" if part == "train" else "t10k"
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        paths = [self.checked(f"{self.location}/{name}", self.files[name][1], self.files[name][0]) for name in names]
        images = self.read(paths[0], lambda: read_image_file(str(paths[0])))
        return images.unsqueeze(1), self.read(paths[1], lambda: read_label_file(str(paths[1])))
