"""SVHN, in the file layout of its authors and of torchvision."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Split
from datamodules.files import HeldOutFiles
from datamodules.loading import TensorImages


class SVHN(HeldOutFiles):
    """House numbers, colour, 32x32 pixels, 10 classes: 68,257 train, 5,000 validation, 26,032 test.

    Source: Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning (2011). Errors
    are those of :class:`ImageFiles`.

    Args:
        extra: whether to add the 531,131 easier images of the extra split, with their labels, to the training images.
        **settings: settings of :class:`ImageFiles`.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    url = "http://ufldl.stanford.edu/housenumbers/"
    location = "train_32x32.mat and test_32x32.mat"

    def __init__(
        self,
        *,
        extra: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.extra = extra

    def fetch(self) -> None:
        """Download the files with torchvision; the extra split only if it is used."""
        from torchvision import datasets  # here, since the import takes seconds

        for part in ("train", "test", *(["extra"] if self.extra else [])):
            datasets.SVHN(self.folder, split=part, download=True)

    def load(self, split: Split) -> TensorImages:
        """Read one split."""
        data = super().load(split)
        if split == "train" and self.extra:
            images, labels = self.published("extra")
            data = TensorImages(torch.cat([data.images, images]), torch.cat([data.labels, labels]), self.num_classes)
        return data

    def published(self, part: Literal["train", "test", "extra"]) -> tuple[Tensor, Tensor]:
        """Images, uint8 of shape (N, 3, 32, 32), and labels, int64 of shape (N,)."""
        from torchvision import datasets

        _, name, md5 = datasets.SVHN.split_list[part]
        path = self.checked(name, md5)
        # self.checked has already verified the checksum, with better errors
        checked = type("SVHN", (datasets.SVHN,), {"_check_integrity": lambda self: True})
        data = self.read(path, lambda: checked(self.folder, split=part))
        return torch.from_numpy(np.ascontiguousarray(data.data)), torch.from_numpy(data.labels).long()
