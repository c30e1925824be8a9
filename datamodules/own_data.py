"""Bases of the user's own data: classes, splits, images without labels."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from datamodules.base import Part, Split
from datamodules.decoding import existing_folder, list_images, read_image
from datamodules.loading import FileImages, LabelledImages, seeded
from datamodules.trained_images import TrainedImages, hashes
from robust.errors import require

FRACTIONS: dict[Split, float] = {"val": 0.1, "test": 0.2}
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LARGEST_IN_MEMORY = 2 * 2**30


class OwnData(TrainedImages):
    """Base of the user's own data, whose classes and splits come from the data.

    If the data has no splits, each class is divided by fractions, with a seed of its own. If it has a training and a
    test split, but no validation split, ``val_fraction`` of each class is held out of the training images. At least one
    image of each class remains for training.

    Args:
        class_names: names of the classes in the order of the logits; by default those of the data, sorted.
        val_fraction: fraction of each class for validation, in (0, 1); by default 0.1.
        test_fraction: fraction of each class for the test, in (0, 1); by default 0.2.
        split_seed: seed of the division.
        predict_from: path of images without labels for ``predict``, which by default predicts the test images.
        **settings: settings of :class:`ImageDataModule`.

    Raises:
        SettingError: if a setting is out of range, or a fraction is given for a split that the data give.
    """

    def __init__(
        self,
        *,
        class_names: list[str] | None = None,
        val_fraction: float | None = None,
        test_fraction: float | None = None,
        split_seed: int = 0,
        predict_from: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.given_fractions: dict[Split, float | None] = {"val": val_fraction, "test": test_fraction}
        self.fractions = {split: FRACTIONS[split] if f is None else f for split, f in self.given_fractions.items()}
        for split, fraction in self.fractions.items():
            require(0 < fraction < 1, f"data.{split}_fraction", fraction, "give a fraction between 0 and 1")
        remedy = f"with data.val_fraction {self.fractions['val']:g}, no images would remain for training; give less"
        require(sum(self.fractions.values()) < 1, "data.test_fraction", self.fractions["test"], remedy)
        require(split_seed >= 0, "data.split_seed", split_seed, "give 0 or more")
        self.split_seed = split_seed
        self.given_names = class_names
        self.predict_from = predict_from
        self.predict_part = "test" if predict_from is None else "predict"

    def set_classes(self, names: Sequence[str], setting: str) -> None:
        """Set the classes: at least two different names.

        Raises:
            SettingError: if there are fewer than two names, or a name is given twice.
        """
        remedy = "give at least two different classes"
        require(len(set(names)) == len(names) >= 2, setting, list(names), remedy)
        self.class_names = tuple(names)
        self.num_classes = len(names)

    def divide(self, labels: Tensor, given: Sequence[Split] | None) -> dict[Split, Tensor]:
        """Indices of each split's images, ascending.

        Args:
            labels: classes (N,).
            given: split of each image; None if the data has no splits.
        """
        if given is None:
            return stratified(labels, self.fractions, self.split_seed)
        self.check_fractions(given)
        parts = {split: torch.tensor([i for i, own in enumerate(given) if own == split]).long() for split in SPLITS}
        training = parts["train"]
        if len(parts["val"]) == 0 and len(training) > 0:
            held_out = stratified(labels[training], {"val": self.fractions["val"]}, self.split_seed)
            parts |= {"train": training[held_out["train"]], "val": training[held_out["val"]]}
        return parts

    def check_fractions(self, given: Iterable[Split]) -> None:
        """Refuse fractions without effect: of splits that the data give, and of a test split beside given ones.

        Args:
            given: splits that the data give.

        Raises:
            SettingError: if a fraction is given and has no effect.
        """
        for split, fraction in self.given_fractions.items():
            used = fraction is None or (split == "val" and "val" not in given)
            setting = f"data.{split}_fraction"
            require(used, setting, fraction, "the data give their own splits, so that it has no effect; remove it")

    def check_part(self, split: Split, labels: Tensor, setting: str, value: str) -> None:
        """Log the number of images of a split, and the classes that have none.

        Raises:
            SettingError: if the split has no image.
        """
        other = "lower data.val_fraction and data.test_fraction" if split == "train" else f"raise data.{split}_fraction"
        remedy = f"there are no images of the split {split}; add some or, where the data give no splits, {other}"
        require(len(labels) > 0, setting, value, remedy)
        assert self.class_names is not None
        counts = torch.bincount(labels, minlength=self.num_classes).tolist()
        absent = [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]
        if split == "train" and absent and list(self.class_names) == [str(label) for label in range(self.num_classes)]:
            labels_from_0 = "labels are whole numbers from 0 to the number of classes less 1"
            rank_zero_warn(f"{setting}: no training image has label {', '.join(absent[:5])}; {labels_from_0}")
        without = f"; none of {', '.join(absent)}" if absent else ""
        rank_zero_info(f"Data: {len(labels):,} {split} images of {self.num_classes} classes{without}")


def stratified(labels: Tensor, fractions: dict[Split, float], seed: int) -> dict[Split, Tensor]:
    """Divide each class by fractions, rounded to whole images.

    The remaining images are for training, at least one of each class.

    Args:
        labels: classes (N,).
        fractions: fraction of each split except training; their sum is below 1.
        seed: seed of the order in each class.

    Returns:
        Indices of the images of each split, ascending.
    """
    parts: dict[Split, list[Tensor]] = {split: [] for split in ("train", *fractions)}
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=seeded(seed, label))]
        for split, fraction in fractions.items():
            count = min(int(fraction * int((labels == label).sum()) + 0.5), len(members) - 1)
            parts[split].append(members[:count])
            members = members[count:]
        parts["train"].append(members)
    return {split: torch.cat(indices).sort().values for split, indices in parts.items()}


class Sample(NamedTuple):
    """An image file, its class, and its split if the data has splits."""

    path: Path
    label: str
    split: Split | None


class OwnImages(OwnData):
    """Base of the user's own image files: PNG, JPEG and WebP of any size and colour mode.

    Each image is rotated by its EXIF orientation, composited on white where it is transparent, resized with
    antialiasing, and made grey or RGB (:func:`datamodules.decoding.read_image`).

    Args:
        image_size: side of the network's images in pixels, or (height, width).
        channels: 3 for RGB (grey images get three equal channels), 1 for grey.
        resize: ``crop`` resizes an image until it covers ``image_size`` and takes its middle; ``stretch`` changes its
            aspect ratio.
        in_memory: whether to decode all images once, at the start, and to store them as bytes; if false, the images of
            each batch are decoded when it is loaded (use ``num_workers``). By default true up to 2 GiB.
        **settings: settings of :class:`OwnData`; ``predict_from`` is a folder.

    Raises:
        SettingError: if a setting is out of range, or a file does not fit; the message names the file.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        channels: Literal[1, 3] = 3,
        resize: Literal["crop", "stretch"] = "crop",
        in_memory: bool | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        require(min(height, width) >= 1, "data.image_size", image_size, "give at least one pixel for each side")
        require(channels in (1, 3), "data.channels", channels, "give 1 (grey) or 3 (RGB)")
        require(resize in ("crop", "stretch"), "data.resize", resize, "give crop or stretch")
        self.image_shape = (channels, height, width)
        self.resize = resize
        self.in_memory = in_memory

    # -- methods that subclasses implement --------------------------------------------------------------------------

    @property
    @abstractmethod
    def source(self) -> tuple[str, Path]:
        """The setting that gives the images, and the folder to which file names are relative."""

    @abstractmethod
    def list_samples(self) -> list[Sample]:
        """All labelled images."""

    # -- the images -------------------------------------------------------------------------------------------------

    @cached_property
    def samples(self) -> list[Sample]:
        """All labelled images, listed at the first use."""
        return self.list_samples()

    def read_classes(self) -> None:
        """Set the classes from ``class_names``, else from the images; call it at the end of the constructor."""
        if self.given_names is not None:
            self.set_classes(self.given_names, "data.class_names")
        else:
            self.set_classes(_sorted({sample.label for sample in self.samples}), self.source[0])

    def load(self, split: Split) -> LabelledImages:
        """Read one split into memory, or prepare to decode it batch by batch."""
        setting, folder = self.source
        indices = self.parts[split]
        labels = self._labels[indices]
        self.check_part(split, labels, setting, str(folder))
        return self._stored([self.samples[index].path for index in indices.tolist()], labels, setting, split)

    def load_unlabelled(self) -> LabelledImages:
        """Read the images of ``predict_from`` into memory, or prepare to decode them batch by batch."""
        paths = self._unlabelled
        return self._stored(paths, torch.zeros(len(paths), dtype=torch.long), "data.predict_from", "predict")

    def file_names(self, part: Part) -> list[str]:
        """The path of each image of a part, relative to the data's folder, or to ``predict_from``."""
        if part == "predict":
            folder = Path(str(self.predict_from)).expanduser()
            return [path.relative_to(folder).as_posix() for path in self._unlabelled]
        paths = [self.samples[index].path for index in self.parts[part].tolist()]
        return [Path(os.path.relpath(path, self.source[1])).as_posix() for path in paths]

    def keys(self, split: Split) -> Tensor:
        """A hash of the relative path and the size of each file of a split, int64 (N,)."""
        sizes = [self.samples[index].path.stat().st_size for index in self.parts[split].tolist()]
        texts = [f"{name}\0{size}" for name, size in zip(self.file_names(split), sizes, strict=True)]
        return hashes(text.encode("utf-8", "surrogateescape") for text in texts)

    @cached_property
    def parts(self) -> dict[Split, Tensor]:
        """Indices of each split's samples."""
        given = [sample.split for sample in self.samples if sample.split is not None]
        return self.divide(self._labels, given or None)

    @cached_property
    def _labels(self) -> Tensor:
        assert self.class_names is not None
        index = {name: number for number, name in enumerate(self.class_names)}
        for path, label, _ in self.samples:
            remedy = f"the class of {path} is not one of data.class_names {list(index)}; correct one of them"
            require(label in index, "data.class_names", label, remedy)
        return torch.tensor([index[sample.label] for sample in self.samples])

    @cached_property
    def _unlabelled(self) -> list[Path]:
        return list_images(existing_folder(str(self.predict_from), "data.predict_from"), "data.predict_from")

    def _stored(self, paths: list[Path], labels: Tensor, setting: str, part: Part) -> LabelledImages:
        """The images in memory, or on disk if they are too large for it."""
        read = partial(read_image, image_shape=self.image_shape, resize=self.resize, setting=setting)
        files = FileImages(paths, labels, self.image_shape, read)
        size = len(paths) * self.image_shape[0] * self.image_shape[1] * self.image_shape[2]
        in_memory = size <= LARGEST_IN_MEMORY if self.in_memory is None else self.in_memory
        how = "kept in memory" if in_memory else f"decoded for each batch by data.num_workers {self.num_workers}"
        what = f"{len(paths):,} images without labels" if part == "predict" else f"the {part} images"
        rank_zero_info(f"Data: {what}, {size / 1e6:,.1f} MB of pixels, are {how}")
        return files.in_memory(self.num_classes) if in_memory else files


def _sorted(names: set[str]) -> list[str]:
    """The names sorted as text, or as numbers if all are whole numbers."""
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))
