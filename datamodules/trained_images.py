"""Base of data whose splits may change between a training and a test: a checkpoint knows the images of its training."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from datamodules.base import ImageDataModule, Split
from robust.errors import require

_EVALUATED: dict[str, tuple[Split, ...]] = {"fit": ("val", "test"), "validate": ("val",), "test": ("test",)}


class TrainedImages(ImageDataModule):
    """A data module that refuses or names images that a checkpoint was trained on. Arguments are those of the base."""

    @abstractmethod
    def keys(self, split: Split) -> Tensor:
        """A number for each image of a split, equal in other splits and on other machines, int64 (N,)."""

    @cached_property
    def _train_keys(self) -> Tensor:
        return self.keys("train")

    def state_dict(self) -> dict[str, Any]:
        """The state of the base, and which images the training has seen."""
        return super().state_dict() | {"train_images": self._train_keys}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the checkpoint's state, and check that no evaluated image is one that it was trained on.

        Another seed of the split, or images that were added since, move images between the splits.

        Raises:
            SettingError: if a training would validate or test on such images, unless ``resume_settings`` is set.
        """
        super().load_state_dict(state_dict)
        trainer, trained = self.trainer, state_dict.get("train_images")
        if trained is None or trainer is None or trainer.state.fn not in _EVALUATED:
            return
        for split in _EVALUATED[trainer.state.fn]:
            keys = self.keys(split)
            seen = int(torch.isin(keys, trained).sum())
            found = f"{seen} of {len(keys)} {split} images that the checkpoint was trained on"
            if seen and trainer.state.fn == "fit":
                chosen = getattr(trainer.lightning_module, "resume_settings", None) is not None
                remedy = "give the images and the split of its training, or set resume_settings to go on with these"
                require(chosen, "data", found, remedy)
            elif seen:
                rank_zero_warn(f"data: got {found}; accuracies on them are no test")


def hashes(values: Iterable[bytes]) -> Tensor:
    """A hash of each value, int64 (N,).

    >>> hashes([b"apple", b"pear", b"apple"]).unique().numel()
    2
    """
    digests = [hashlib.blake2b(value, digest_size=8).digest() for value in values]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)
