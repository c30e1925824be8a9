"""Base of the data sets in files: folder, checksums, download."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from datamodules.base import ImageDataModule, Split
from datamodules.loading import TensorImages
from robust.errors import SettingError

Read = TypeVar("Read")

VALIDATION_IMAGES = 5_000


def held_out(size: int) -> Tensor:
    """Mask of the 5,000 validation images among ``size`` training images, always the same; bool, shape (size,)."""
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[torch.randperm(size, generator=torch.Generator().manual_seed(0))[:VALIDATION_IMAGES]] = True
    return chosen


class ImageFiles(ImageDataModule):
    """Base of the data sets in files; a data set also implements :meth:`fetch`.

    Args:
        root: folder of all data sets; by default the environment variable ``ROBUST_DATA``, else ``data``.
        download: whether to download the files if they are absent.
        verify_checksums: whether to refuse files that differ from the published ones; if false, only warn. Code in the
            files never runs.
        **settings: settings of :class:`ImageDataModule`.

    Attributes:
        url: address of the published files.
        location: path of the files below ``root``.

    Raises:
        SettingError: from ``prepare_data`` if the download fails, from ``setup`` if a file is absent or damaged.
    """

    url: ClassVar[str]
    location: ClassVar[str]

    def __init__(
        self,
        *,
        root: str | None = None,
        download: bool = False,
        verify_checksums: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.root = root or os.environ.get("ROBUST_DATA") or "data"
        self.download = download
        self.verify_checksums = verify_checksums

    @property
    def folder(self) -> Path:
        """The data folder."""
        return Path(self.root).expanduser()

    @abstractmethod
    def fetch(self) -> None:
        """Download and unpack the files into :attr:`folder`, unless they exist."""

    def prepare_data(self) -> None:
        """Download the files if ``download`` is set; Lightning calls this in one process of each machine."""
        if not self.download:
            return
        try:
            self.fetch()
        except (RuntimeError, OSError, HTTPException, EOFError) as error:
            reason = " ".join(str(error).split())
            remedy = f"the download failed ({reason}); put the files there, or give another folder as --data.root"
            raise SettingError("data.root", self.root, remedy) from error

    def checked(self, name: str, md5: str, size: int | None = None) -> Path:
        """Path of the file ``name`` below the data folder, after a check of its md5 (and its size in bytes).

        Raises:
            SettingError: if the file is absent, or damaged and ``verify_checksums`` is set.
        """
        path = self.folder / name
        try:
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        except OSError as error:
            raise self.absent(path, error.strerror or "unreadable") from error
        if checksum != md5:
            length = path.stat().st_size
            whole = size is None or length == size
            damage = f"checksum {checksum} instead of {md5}" if whole else f"{length:,} bytes instead of {size:,}"
            if self.verify_checksums:
                raise self.damaged(path, damage)
            rank_zero_warn(
                f"data.verify_checksums: false accepts {path}, which is not the published file ({damage}); metrics are "
                "not comparable with published ones"
            )
        return path

    def read(self, path: Path, reader: Callable[[], Read]) -> Read:
        """Call ``reader`` and return its result.

        Raises:
            SettingError: if ``path`` is absent or damaged.
        """
        try:
            return reader()
        except FileNotFoundError as error:
            raise self.absent(Path(error.filename or path), "No such file or directory") from error
        except Exception as error:  # each format raises its own errors: pickle, zip, struct, scipy, shapes
            raise self.damaged(path, f"{type(error).__name__}: {' '.join(str(error).split())}") from error

    def absent(self, path: Path, reason: str) -> SettingError:
        """The error for a file that is absent or cannot be read."""
        remedy = (
            f"cannot read {path} ({reason}); add --data.download true to fetch it from {self.url}, or give the folder "
            f"that holds {self.location} as --data.root or in the environment variable ROBUST_DATA"
        )
        return SettingError("data.root", self.root, remedy)

    def damaged(self, path: Path, reason: str) -> SettingError:
        """The error for a damaged file."""
        remedy = f"{path} is damaged ({reason}); delete it and add --data.download true to fetch it from {self.url}"
        return SettingError("data.root", self.root, remedy)


class HeldOutFiles(ImageFiles):
    """Base of the data sets whose validation images are held out of the published training images.

    A data set also implements :meth:`published`.
    """

    @abstractmethod
    def published(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Images, uint8 of shape (N, C, H, W), and labels, int64 of shape (N,), of a published part."""

    def validation(self, size: int) -> Tensor:
        """Mask of the validation images among ``size`` training images; bool, shape (size,)."""
        return held_out(size)

    def load(self, split: Split) -> TensorImages:
        """Read one split."""
        if split == "test":
            return TensorImages(*self.published("test"), self.num_classes)
        images, labels = self._training_files
        validation = self.validation(len(labels))
        part = validation if split == "val" else ~validation
        return TensorImages(images[part], labels[part], self.num_classes)

    @cached_property
    def _training_files(self) -> tuple[Tensor, Tensor]:
        return self.published("train")
