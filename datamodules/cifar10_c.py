"""CIFAR-10-C: the test images of CIFAR-10 under 15 corruptions of five severities, in its authors' file layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.corrupted import CorruptedCopies
from datamodules.loading import LabelledImages
from robust.errors import require

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)


class CIFAR10C(CorruptedCopies):
    """The 10,000 test images of CIFAR-10 under each of 15 corruptions of each severity; it has only a test split.

    Source: D. Hendrycks, T. Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations
    (ICLR 2019), file ``CIFAR-10-C.tar`` of Zenodo record 2535967. The images stay on disk until they are used. Errors
    are those of :class:`ImageFiles`.

    Args:
        severity: severity from 1 to 5; None for all.
        **settings: settings of :class:`~datamodules.corrupted.CorruptedCopies`.
    """

    corruptions = CORRUPTIONS
    num_classes = 10
    image_shape = (3, 32, 32)
    original = "CIFAR10"
    url = "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar"
    archive = "CIFAR-10-C.tar"
    md5 = "56bf5dcef84df0e2308c6dcbcbbd8499"
    location = "CIFAR-10-C"

    def __init__(self, *, severity: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        require(severity in (None, *SEVERITIES), "data.severity", severity, "give 1 to 5, or leave it out for all")
        self.severity = severity

    @property
    def _parts(self) -> list[tuple[str, int]]:
        severities = SEVERITIES if self.severity is None else (self.severity,)
        return [(name, severity) for name in self.names for severity in severities]

    @property
    def groups(self) -> dict[str, int]:
        """Number of test images of each corruption and severity, such as ``fog_5``, in order."""
        return {f"{name}_{severity}": self.images_per_group for name, severity in self._parts}

    def copies(self) -> LabelledImages:
        """The images of each corruption and severity, in CIFAR-10's order."""
        size, parts, labels = self.images_per_group, [], []
        all_labels = self._array("labels")
        for name, severity in self._parts:
            part = slice((severity - 1) * size, severity * size)
            parts.append(self._array(name)[part])
            labels.append(torch.from_numpy(np.array(all_labels[part], dtype=np.int64)))
        return MappedImages(parts, torch.cat(labels))

    def _array(self, name: str) -> np.ndarray:
        """The array of 50,000 labels or images in a file; it stays on disk."""
        path, size = self.folder / self.location / f"{name}.npy", len(SEVERITIES) * self.images_per_group
        array = self.read(path, lambda: _mapped(path))
        channels, height, width = self.image_shape
        shape = (size,) if name == "labels" else (size, height, width, channels)
        if array.shape != shape:
            raise self.damaged(path, f"shape {array.shape} instead of {shape}")
        if name == "labels" and (array.min() < 0 or array.max() >= self.num_classes):
            raise self.damaged(path, f"labels from {array.min()} to {array.max()}, not from 0 to 9")
        if name != "labels" and array.dtype != np.uint8:
            raise self.damaged(path, f"{array.dtype} instead of uint8")
        return array


class MappedImages(LabelledImages):
    """Labelled images in arrays that stay on disk.

    Args:
        parts: arrays of images, of equal length, uint8, shape (N, H, W, C).
        labels: labels of all parts, int64.
    """

    def __init__(self, parts: list[np.ndarray], labels: Tensor) -> None:
        height, width, channels = parts[0].shape[1:]
        super().__init__(labels, (channels, height, width))
        self.parts = parts

    def pixels(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (B,), uint8 of shape (B, C, H, W)."""
        size = len(self.parts[0])
        images = np.stack([self.parts[index // size][index % size] for index in indices.tolist()])
        return torch.from_numpy(images).movedim(-1, 1).contiguous()


def _mapped(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
