"""MNIST, in torchvision's layout of files."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from datamodules.base import ImageDataModule, Split, TensorImages
from robust.errors import SettingError

_VALIDATION_IMAGES = 5_000


class MNIST(ImageDataModule):
    """70,000 grey digits of 28x28 pixels, 10 classes: 55,000 train, 5,000 validation (the last), 10,000 test.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits (1998).

    Args:
        root: folder that holds ``MNIST/raw``; default is the environment variable ``ROBUST_DATA``, else ``data``.
        download: fetch the files if they are absent.
        batch_size: training images in a step, over all processes.
        eval_batch_size: images in a step of validation, test and prediction, over all processes.
        num_workers: loader processes; 0 is fastest for images in memory.
        seed: of the training images' order; default is the run's own (``seed_everything``), else 0.

    Raises:
        SettingError: from ``prepare_data`` if the download fails, from ``setup`` if a file is absent or damaged.
    """

    num_classes = 10
    image_shape = (1, 28, 28)
    # size in bytes and md5 of each unpacked file
    files: ClassVar[dict[str, tuple[int, str]]] = {
        "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
        "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
        "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
        "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
    }

    def __init__(
        self,
        *,
        root: str | None = None,
        download: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        self.root = root or os.environ.get("ROBUST_DATA") or "data"
        self.download = download

    def prepare_data(self) -> None:
        """Download the files on request; Lightning calls this in one process of each machine."""
        if not self.download:
            return
        from torchvision import datasets  # late, for the import takes seconds

        try:
            datasets.MNIST(self.root, download=True)
        except (RuntimeError, OSError, HTTPException) as error:
            reason = " ".join(str(error).split())
            remedy = f"the download failed ({reason}); put the files there, or name another folder by --data.root"
            raise SettingError("data.root", self.root, remedy) from error

    def load(self, split: Split) -> TensorImages:
        """Read one split."""
        if split == "test":
            return TensorImages(*self._read("t10k"), self.num_classes)
        images, labels = self._training_files
        part = slice(-_VALIDATION_IMAGES) if split == "train" else slice(-_VALIDATION_IMAGES, None)
        return TensorImages(images[part], labels[part], self.num_classes)

    @cached_property
    def _training_files(self) -> tuple[Tensor, Tensor]:
        return self._read("train")

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        """Images, uint8 of shape (N, 1, 28, 28), and labels, int64 of shape (N,)."""
        from torchvision.datasets.mnist import read_image_file, read_label_file

        images = read_image_file(self._checked(f"{part}-images-idx3-ubyte"))
        return images.unsqueeze(1), read_label_file(self._checked(f"{part}-labels-idx1-ubyte"))

    def _checked(self, name: str) -> str:
        """Path of a file that is there and whole, which torchvision does not check."""
        path = Path(self.root).expanduser() / "MNIST" / "raw" / name
        size, md5 = self.files[name]
        try:
            content = path.read_bytes()
        except OSError as error:
            remedy = (
                f"cannot read {path} ({error.strerror}); add --data.download true, or name the folder that holds "
                "MNIST/raw by --data.root or the environment variable ROBUST_DATA"
            )
            raise SettingError("data.root", self.root, remedy) from error
        damage = f"{len(content):,} bytes instead of {size:,}" if len(content) != size else "wrong checksum"
        if len(content) != size or hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            remedy = f"{path} is damaged ({damage}); delete it and add --data.download true"
            raise SettingError("data.root", self.root, remedy)
        return str(path)
