"""The handwritten digits of scikit-learn, which need no download."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from datamodules.base import ImageDataModule, Split
from datamodules.loading import TensorImages

# Of each 18 successive images of a class, 13 are for training, 2 for validation and 3 for the test.
_PERIOD = 18
_INDICES: dict[Split, list[int]] = {
    "val": [2, 8],
    "test": [5, 11, 17],
    "train": [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 14, 15, 16],
}


class Digits(ImageDataModule):
    """1,797 grey digits of 10 classes, enlarged from 8x8 to 28x28 pixels: 1,298 train, 200 validation, 299 test.

    The split is fixed, balanced over the classes, and uses no random numbers. The same people wrote the digits of all
    three splits. Arguments are those of :class:`ImageDataModule`.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), test part;
    ``sklearn.datasets.load_digits``.
    """

    num_classes = 10
    image_shape = (1, 28, 28)

    def load(self, split: Split) -> TensorImages:
        """Read one split."""
        images, labels = _digits()
        index = torch.empty_like(labels)
        index[labels.argsort(stable=True)] = torch.arange(len(labels)) % _PERIOD
        chosen = torch.isin(index, torch.tensor(_INDICES[split]))
        return TensorImages(images[chosen], labels[chosen], self.num_classes)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All images, uint8 of shape (1797, 1, 28, 28), and labels, int64 of shape (1797,)."""
    from sklearn.datasets import load_digits  # takes a second

    digits = load_digits()
    small = torch.from_numpy(digits.images).unsqueeze(1) * (255 / 16)
    large = functional.interpolate(small, size=(28, 28), mode="bilinear")
    # some values are exact halves; adding 1e-6 rounds them up, so that every machine's arithmetic gives the same bytes
    return (large + 0.5 + 1e-6).floor().to(torch.uint8), torch.from_numpy(digits.target).long()
