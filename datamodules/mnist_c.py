"""MNIST-C: the test images of MNIST under 15 corruptions, in its authors' file layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from datamodules.corrupted import CorruptedCopies
from datamodules.loading import TensorImages

CORRUPTIONS = (
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "shear",
    "scale",
    "rotate",
    "brightness",
    "translate",
    "stripe",
    "fog",
    "spatter",
    "dotted_line",
    "zigzag",
    "canny_edges",
)


class MNISTC(CorruptedCopies):
    """The 10,000 test images of MNIST under each of 15 corruptions; it has only a test split.

    Source: N. Mu, J. Gilmer, MNIST-C: A Robustness Benchmark for Computer Vision (2019), file ``mnist_c.zip`` of
    Zenodo record 3239543. Errors are those of :class:`ImageFiles`.

    All corruptions together have 150,000 images, whose accuracy is the mean over the 15 corruptions.
    """

    corruptions = CORRUPTIONS
    num_classes = 10
    image_shape = (1, 28, 28)
    original = "MNIST"
    url = "https://zenodo.org/records/3239543/files/mnist_c.zip"
    archive = "mnist_c.zip"
    md5 = "4b34b33045869ee6d424616cd3a65da3"
    location = "mnist_c"

    @property
    def groups(self) -> dict[str, int]:
        """Number of test images of each corruption, in order."""
        return dict.fromkeys(self.names, self.images_per_group)

    def copies(self) -> TensorImages:
        """The images under each corruption, in MNIST's order."""
        parts = [self.load_corruption(name) for name in self.names]
        images, labels = (torch.cat([getattr(part, field) for part in parts]) for field in ("images", "labels"))
        return TensorImages(images, labels, self.num_classes)

    def load_corruption(self, name: str) -> TensorImages:
        """The 10,000 test images under one corruption, in MNIST's order."""
        folder = self.folder / self.location / name
        arrays = []
        for field in ("images", "labels"):
            path = folder / f"test_{field}.npy"
            array = self.read(path, lambda path=path: _array(path))  # type: ignore[misc]
            if len(array) != self.images_per_group:
                raise self.damaged(path, f"{len(array):,} entries instead of {self.images_per_group:,}")
            arrays.append(torch.from_numpy(array))
        images = arrays[0].movedim(-1, 1).contiguous()
        return TensorImages(images, arrays[1].long(), self.num_classes)


def _array(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        array: np.ndarray = np.load(file, allow_pickle=False)
    return array
