"""Batches of labelled and pseudo-labelled images at a fixed ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataModule, Part, Split
from datamodules.batches import ShardedBatches
from datamodules.loading import LabelledImages, TensorImages, scaled, seeded
from datamodules.pickles import read_trusted
from datamodules.trained_images import TrainedImages, hashes
from robust.errors import SettingError, require

# keys in the files of Carmon et al. (ti_500K_pseudo_labeled.pickle) and of later work
_IMAGE_KEYS = ("image", "images", "data")
_LABEL_KEYS = ("label", "labels", "extrapolated_targets")


class SemiSupervised(TrainedImages):
    """Training batches with a fixed fraction of labelled images, the rest pseudo-labelled; other splits are unchanged.

    An epoch is one pass over the labelled images. Each epoch draws new pseudo-labelled images, without repetition as
    long as there are enough. The labelled images may be those of any data module, also from disk. Batch sizes,
    augmentation, workers, seed, ``test_images`` and the images of ``predict`` are those of ``labelled``. Source:
    Y. Carmon et al., Unlabeled Data Improves Adversarial Robustness (2019), Sec. 5.

    Args:
        labelled: data module that provides labelled training, validation and test images.
        pseudo_labelled: npz or pickle file with images, uint8 of shape (N, H, W, C) or (N, C, H, W), under ``image``,
            ``images`` or ``data``, and classes, shape (N,), under ``label``, ``labels`` or ``extrapolated_targets``.
            A pickle may have only arrays and plain values, since code in it does not run.
        trust_pickle: whether to read a pickle of any content and run code in it; only for files that you trust.
        labelled_fraction: fraction of labelled images in a batch, strictly between 0 and 1.

    Raises:
        SettingError: if the file is absent, damaged, not trusted though it could run code, or does not fit the labelled
            images, or if the fraction does not give a whole, positive number of images of both kinds.
    """

    def __init__(
        self,
        *,
        labelled: ImageDataModule,
        pseudo_labelled: str,
        labelled_fraction: float = 0.5,
        trust_pickle: bool = False,
    ) -> None:
        super().__init__(
            augmentation=labelled.augmentation,
            batch_size=labelled.batch_size,
            eval_batch_size=labelled.eval_batch_size,
            num_workers=labelled.num_workers,
            seed=labelled.seed,
            test_images=labelled.test_images,
        )
        count = labelled_fraction * labelled.batch_size
        whole = abs(count - round(count)) < 1e-6 and 0 < round(count) < labelled.batch_size
        remedy = f"give a fraction that is a whole number of images of data.labelled.batch_size {labelled.batch_size}"
        require(whole, "data.labelled_fraction", labelled_fraction, remedy)
        self.labelled = labelled
        self.pseudo_labelled, self.trust_pickle = pseudo_labelled, trust_pickle
        self.labelled_in_batch = round(count)
        self.num_classes = labelled.num_classes
        self.image_shape = labelled.image_shape
        self.class_names = labelled.class_names
        self.predict_part = labelled.predict_part
        if hasattr(labelled, "regions"):  # of validation and test images, for BudgetRegions
            self.regions = labelled.regions

    def prepare_data(self) -> None:
        """Prepare the labelled data."""
        self.labelled.prepare_data()

    def load(self, split: Split) -> LabelledImages:
        """Read one split of the labelled images; append the pseudo-labelled images to the training split."""
        plain = self.labelled.load(split)
        if split != "train":
            return plain
        return JoinedImages(plain, self._read())

    def load_unlabelled(self) -> LabelledImages:
        """Read the images without labels of ``labelled``."""
        return self.labelled.load_unlabelled()

    def file_names(self, part: Part) -> list[str] | None:
        """The files of the labelled images; None for the training images, of which only some are labelled."""
        return None if part == "train" else self.labelled.file_names(part)

    def keys(self, split: Split) -> Tensor:
        """Those of the labelled images; none if their data module has fixed splits."""
        return self.labelled.keys(split) if isinstance(self.labelled, TrainedImages) else hashes([])

    def batches(self, images: LabelledImages, batch_size: int, *, train: bool) -> ShardedBatches:
        """Sampler that mixes labelled and pseudo-labelled images in training; the usual sampler otherwise."""
        if not train:
            return super().batches(images, batch_size, train=train)
        return MixedBatches(images, batch_size, self._count, self.labelled_in_batch, self.shuffle_seed)

    def _read(self) -> TensorImages:
        setting = "data.pseudo_labelled"
        path = Path(self.pseudo_labelled).expanduser()
        try:
            content = self._content(path)
            pixels = np.asarray(content[_key(content, _IMAGE_KEYS)])
            classes = np.asarray(content[_key(content, _LABEL_KEYS)])
            images, labels = torch.from_numpy(pixels), torch.from_numpy(classes)
        except SettingError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            remedy = f"cannot read it ({reason}); give an npz or pickle file with image and label"
            raise SettingError(setting, self.pseudo_labelled, remedy) from error
        if images.ndim == 4 and tuple(images.shape[1:]) != self.image_shape:
            images = images.movedim(-1, 1).contiguous()
        given = (images.dtype, tuple(images.shape))
        fits = images.dtype == torch.uint8 and tuple(images.shape[1:]) == self.image_shape and len(images) > 0
        remedy = f"{self.pseudo_labelled} must hold uint8 images of the labelled images' shape {self.image_shape}"
        require(fits, setting, given, remedy)
        self._count = len(images)
        return TensorImages(images, self._checked_labels(labels, len(images)), self.num_classes)

    def _checked_labels(self, labels: Tensor, count: int) -> Tensor:
        """The labels as int64 (count,)."""
        setting = "data.pseudo_labelled"
        shape = tuple(labels.shape)
        remedy = f"{self.pseudo_labelled} has {count} images; give one label for each, shape ({count},)"
        require(labels.numel() == count == max(shape, default=0), setting, f"labels of shape {shape}", remedy)
        classes = labels.flatten().long()
        whole = labels.dtype != torch.bool and bool((classes.double() == labels.flatten().double()).all())
        remedy = "give whole numbers as classes, not probabilities or soft labels"
        require(whole, setting, f"labels of {labels.dtype} that are not whole numbers", remedy)
        span = (int(classes.min()), int(classes.max()))
        remedy = f"give classes from 0 to {self.num_classes - 1}, like those of the labelled images"
        require(span[0] >= 0 and span[1] < self.num_classes, setting, f"labels from {span[0]} to {span[1]}", remedy)
        return classes

    def _content(self, path: Path) -> Any:
        if path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return dict(file)
        return read_trusted(path, self.trust_pickle, "data.pseudo_labelled")


def _key(content: Any, names: tuple[str, ...]) -> str:
    for name in names:
        if name in content:
            return name
    raise KeyError(f"none of {', '.join(names)} among {', '.join(content)}")


class JoinedImages(LabelledImages):
    """The images of two data sets, one after the other.

    Args:
        first: images of any kind.
        second: images of the same shape.
    """

    def __init__(self, first: LabelledImages, second: LabelledImages) -> None:
        super().__init__(torch.cat([first.labels, second.labels]), first.image_shape)
        self.first, self.second = first, second

    def pixels(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (B,), shape (B, C, H, W): bytes where both data sets hold bytes, else floats."""
        order = (indices >= len(self.first)).argsort(stable=True)  # images of the first data set come first
        count = int((indices < len(self.first)).sum())
        ordered = indices[order]
        parts = [self.first.pixels(ordered[:count]), self.second.pixels(ordered[count:] - len(self.first))]
        if parts[0].dtype != parts[1].dtype:
            parts = [scaled(part) for part in parts]
        return torch.cat(parts).index_select(0, order.argsort())  # five times as fast as assignment by masks


class MixedBatches(ShardedBatches):
    """Sampler of batches with a fixed number of labelled images, in random order inside the batch.

    Args:
        dataset: labelled images, followed by pseudo-labelled ones.
        batch_size: number of images in a batch, over all processes.
        pseudo_labelled: number of pseudo-labelled images.
        labelled_in_batch: number of labelled images in a batch, over all processes.
        seed: seed of the order.
        num_replicas: number of processes; by default that of torch.distributed.
        rank: rank of this process; by default that of torch.distributed.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        batch_size: int,
        pseudo_labelled: int,
        labelled_in_batch: int,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.labelled = len(dataset) - pseudo_labelled
        self.labelled_in_batch = labelled_in_batch
        remedy = f"a batch would need {labelled_in_batch} labelled images, of which there are {self.labelled}; give a "
        remedy += "smaller fraction or a smaller data.labelled.batch_size"
        require(labelled_in_batch <= self.labelled, "data.labelled_fraction", labelled_in_batch / batch_size, remedy)
        super().__init__(dataset, batch_size, shuffle=True, seed=seed, num_replicas=num_replicas, rank=rank)

    def __len__(self) -> int:
        """Number of batches in an epoch: one pass over the labelled images."""
        return self.labelled // self.labelled_in_batch

    def _order(self) -> Tensor:
        generator = seeded(self.seed, self.epoch)
        more, pool = self.batch_size - self.labelled_in_batch, self.size - self.labelled
        labelled = torch.randperm(self.labelled, generator=generator)[: len(self) * self.labelled_in_batch]
        rounds = -(-len(self) * more // pool)
        drawn = torch.cat([torch.randperm(pool, generator=generator) for _ in range(rounds)])[: len(self) * more]
        batches = torch.cat([labelled.view(len(self), -1), self.labelled + drawn.view(len(self), -1)], dim=1)
        return batches.gather(1, torch.rand(batches.shape, generator=generator).argsort(1)).flatten()
