"""Fashion-MNIST, in torchvision's file layout."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from datamodules.files import held_out
from datamodules.mnist import MNIST


class FashionMNIST(MNIST):
    """70,000 grey pieces of clothing of 28x28 pixels, 10 classes: 55,000 train, 5,000 validation, 10,000 test.

    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms (2017). Arguments and errors are those of :class:`ImageFiles`.
    """

    url = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    location = "FashionMNIST/raw"
    files: ClassVar[dict[str, tuple[int, str]]] = {
        "train-images-idx3-ubyte": (47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        "train-labels-idx1-ubyte": (60_008, "9018921c3c673c538a1fc5bad174d6f9"),
        "t10k-images-idx3-ubyte": (7_840_016, "8181f5470baa50b63fa0f6fddb340f0a"),
        "t10k-labels-idx1-ubyte": (10_008, "15d484375f8d13e6eb1aabb0c3f46965"),
    }

    def fetch(self) -> None:
        """Download the files with torchvision."""
        from torchvision import datasets  # here, since the import takes seconds

        datasets.FashionMNIST(self.folder, download=True)

    def validation(self, size: int) -> Tensor:
        """Mask of the validation images, as in most data sets; bool, shape (size,)."""
        return held_out(size)
