"""Tiny-ImageNet, in its authors' folder layout."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from datamodules.files import HeldOutFiles
from robust.folders import replacing


class TinyImageNet(HeldOutFiles):
    """Colour images of 64x64 pixels, 200 classes: 95,000 train, 5,000 validation, 10,000 test.

    Source: Y. Le, X. Yang, Tiny ImageNet Visual Recognition Challenge (Stanford CS231n, 2015). The labels of its test
    images were never published. So, as usual, its validation images are the test split here, and validation images are
    held out of the training images. Classes are the sorted folder names. The download checks the archive's checksum;
    the unpacked files have no checksums. The first use decodes 110,000 JPEG files in a minute or two and stores the
    pixels (1.4 GB) beside them. Arguments and errors are those of :class:`ImageFiles`.
    """

    num_classes = 200
    image_shape = (3, 64, 64)
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    location = "tiny-imagenet-200"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"
    sizes = (100_000, 10_000)  # numbers of images in train and val of the published layout

    def fetch(self) -> None:
        """Download and unpack the archive, unless its folder exists."""
        from torchvision.datasets.utils import download_and_extract_archive  # here, since the import takes seconds

        if not (self.folder / self.location).is_dir():
            download_and_extract_archive(self.url, str(self.folder), md5=self.md5)

    def prepare_data(self) -> None:
        """Download the files if ``download`` is set, and decode them once, in one process of each machine."""
        super().prepare_data()
        for part in ("train", "val"):
            self._decoded(part)

    def published(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Images, uint8 of shape (N, 3, 64, 64), and labels, int64 of shape (N,)."""
        return self._decoded("train" if part == "train" else "val")

    def _decoded(self, part: str) -> tuple[Tensor, Tensor]:
        """Images, uint8 of shape (N, 3, 64, 64), and labels, int64 of shape (N,), of the folder train or val."""
        cache = self.folder / self.location / f"{part}-decoded.pt"
        if cache.exists():
            return self.read(cache, lambda: tuple(torch.load(cache, mmap=True, weights_only=True)))  # type: ignore[return-value]
        paths, labels = self._listed(part)
        expected = self.sizes[part == "val"]
        if len(paths) != expected:
            raise self.damaged(self.folder / self.location / part, f"{len(paths):,} images instead of {expected:,}")
        images = _decode_all(self, paths)
        result = (images, torch.tensor(labels))
        with replacing(cache, "data.root") as unfinished:
            torch.save(result, unfinished)
        return result

    def _listed(self, part: str) -> tuple[list[Path], list[int]]:
        """Paths and classes of the images of a part, sorted by name."""
        folder = self.folder / self.location
        names = self.read(folder / "wnids.txt", lambda: sorted((folder / "wnids.txt").read_text().split()))
        index = {name: number for number, name in enumerate(names)}
        if part == "train":
            pairs = [(path, index[name]) for name in names for path in sorted((folder / part / name).glob("images/*"))]
        else:
            file = folder / part / "val_annotations.txt"
            rows = self.read(file, lambda: [line.split("\t") for line in sorted(file.read_text().splitlines())])
            pairs = self.read(file, lambda: [(folder / part / "images" / row[0], index[row[1]]) for row in rows])
        return [path for path, _ in pairs], [label for _, label in pairs]


def _decode_all(data: TinyImageNet, paths: Iterable[Path]) -> Tensor:
    """The images as uint8, shape (N, 3, 64, 64); some files are grey."""
    from torchvision.io import ImageReadMode, decode_image  # here, since the import takes seconds

    def decode(path: Path) -> Tensor:
        image: Tensor = data.read(path, lambda: decode_image(str(path), ImageReadMode.RGB).view(data.image_shape))
        return image

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        return torch.stack(list(pool.map(decode, paths)))
