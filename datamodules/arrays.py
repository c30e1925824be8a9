"""The user's own arrays of images and labels, in npz, npy or safetensors files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Split
from datamodules.loading import LabelledImages
from datamodules.own_data import SPLITS, OwnData
from datamodules.trained_images import hashes
from robust.errors import SettingError, require

MOST_CLASSES = 10_000  # of labels without names, unless there are more images
_OF_SPLITS = re.compile("((train|training|val|valid|validation|test|testing)_)?(images|labels)")
_FORMATS = "an npz or a safetensors file, or a folder of npy files"


class ArrayImages(LabelledImages):
    """Labelled images in an array, which may be on disk.

    Args:
        array: images, uint8 or floats in [0, 1], shape (N, C, H, W).
        rows: indices of the images that belong to the split, int64 (M,).
        labels: labels of these images, int64 (M,).
    """

    def __init__(self, array: Tensor, rows: Tensor, labels: Tensor) -> None:
        super().__init__(labels, array.shape[1:])
        self.array, self.rows = array, rows

    def pixels(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (B,), uint8 or float32, shape (B, C, H, W)."""
        images = self.array.index_select(0, self.rows[indices]).contiguous()
        return images if images.dtype == torch.uint8 else images.float()


class Arrays(OwnData):
    """Images and labels in arrays: an npz or a safetensors file, or a folder of npy files.

    The arrays are called ``images`` and ``labels``, or ``train_images``, ``train_labels``, ``test_images``,
    ``test_labels`` and, if there are any, ``val_images`` and ``val_labels``; npy files have the same names. Images are
    uint8 or floats in [0, 1], of shape (N, H, W), (N, H, W, C) or (N, C, H, W); labels are whole numbers from 0, of
    shape (N,) or (N, 1). Images are not resized. An npz file is read into memory; npy and safetensors files are mapped,
    so that batches are read from disk when they are needed.

    Args:
        path: path of the file or folder; ``predict`` also takes the classes and the shape from it.
        channels_last: whether the last dimension holds the channels; by default the dimension of size 1 or 3 does.
        **settings: settings of :class:`OwnData`; ``predict_from`` is such a file or folder with ``images``.

    Raises:
        SettingError: if the file is absent or damaged, or an array does not fit; the message names the array.
    """

    def __init__(self, *, path: str, channels_last: bool | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.path, self.channels_last = path, channels_last
        self._arrays = _opened(path, "data.path")
        self._by_split = "train_images" in self._arrays
        read = {f"{prefix}{kind}" for prefix in self._prefixes() for kind in ("images", "labels")}
        unread = sorted(name for name in set(self._arrays) - read if _OF_SPLITS.fullmatch(name))
        remedy = f"these arrays would not be read beside {', '.join(sorted(read))}; rename or remove them"
        require(not unread, "data.path", ", ".join(unread), remedy)
        if self._by_split:
            self.check_fractions([split for split in SPLITS if f"{split}_" in self._prefixes()])
        self._labels = {prefix: self._classes(prefix) for prefix in self._prefixes()}
        count = 1 + max(int(labels.max()) for labels in self._labels.values())
        most = max(MOST_CLASSES, sum(len(labels) for labels in self._labels.values()))
        remedy = "there are not so many images; number the classes from 0, or give data.class_names"
        require(self.given_names is not None or count <= most, "data.path", f"a label of {count - 1}", remedy)
        names = [str(index) for index in range(count)] if self.given_names is None else self.given_names
        remedy = f"the labels go up to {count - 1}; name at least {count} classes"
        require(len(names) >= count, "data.class_names", self.given_names, remedy)
        self.set_classes(names, "data.path" if self.given_names is None else "data.class_names")
        _, channels, height, width = self._array(self._prefixes()[0]).shape
        self.image_shape = (channels, height, width)

    def load(self, split: Split) -> LabelledImages:
        """Prepare one split."""
        prefix, rows = self._rows(split)
        labels = self._labels[prefix][rows] if prefix in self._labels else torch.zeros(0, dtype=torch.long)
        self.check_part(split, labels, "data.path", self.path)
        images = self._array(prefix)
        _check_range(images, f"data.path, {prefix}images of {self.path}")
        return ArrayImages(images, rows, labels)

    def load_unlabelled(self) -> LabelledImages:
        """Prepare the images of ``predict_from``."""
        arrays = _opened(str(self.predict_from), "data.predict_from")
        where = f"data.predict_from, images of {self.predict_from}"
        images = _taken(arrays, "images", "data.predict_from", str(self.predict_from))
        images = _channels_first(images, self.channels_last, where)
        _check_range(images, where)
        count = len(images)
        return ArrayImages(images, torch.arange(count), torch.zeros(count, dtype=torch.long))

    def keys(self, split: Split) -> Tensor:
        """A hash of each image's index in its array, its label, and the pixels in its middle, int64 (N,).

        The middle alone, since arrays may be larger than the memory.
        """
        prefix, rows = self._rows(split)
        images = self._array(prefix)
        middles = images[rows, :, images.shape[2] // 2].contiguous().view(torch.uint8).numpy()
        labels = self._labels[prefix][rows] if prefix in self._labels else rows
        named = zip(rows.tolist(), labels.tolist(), middles, strict=True)
        return hashes(f"{prefix}{row} {label} ".encode() + middle.tobytes() for row, label, middle in named)

    def _prefixes(self) -> list[str]:
        """Prefixes of the arrays' names."""
        if not self._by_split:
            return [""]
        return [f"{split}_" for split in SPLITS if f"{split}_images" in self._arrays]

    def _rows(self, split: Split) -> tuple[str, Tensor]:
        """The prefix of the arrays that hold a split, and the indices of the split's images in them."""
        if not self._by_split:
            return "", self.divide(self._labels[""], None)[split]
        prefix = "train_" if split == "val" and "val_" not in self._labels else f"{split}_"
        labels = self._labels.get(prefix, torch.zeros(0, dtype=torch.long))
        if prefix == "train_" and "val_" not in self._labels:
            return prefix, self.divide(labels, ["train"] * len(labels))[split]
        return prefix, torch.arange(len(labels))

    def _array(self, prefix: str) -> Tensor:
        """Images (N, C, H, W), which may be mapped from disk."""
        array = _taken(self._arrays, f"{prefix}images", "data.path", self.path)
        return _channels_first(array, self.channels_last, f"data.path, {prefix}images of {self.path}")

    def _classes(self, prefix: str) -> Tensor:
        """Labels as int64 (N,)."""
        where = f"data.path, {prefix}labels of {self.path}"
        labels = _taken(self._arrays, f"{prefix}labels", "data.path", self.path)
        count = len(_taken(self._arrays, f"{prefix}images", "data.path", self.path))
        require(count > 0, "data.path", self.path, f"it holds no {prefix}images; give some")
        fits = tuple(labels.shape) in ((count,), (count, 1))
        require(fits, where, f"shape {tuple(labels.shape)}", f"give one label for each of {count} images")
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        require(whole, where, str(labels.dtype), "give classes as whole numbers")
        classes = labels.flatten().long()
        smallest = int(classes.min())
        require(smallest >= 0, where, smallest, "give classes from 0")
        return classes


def _opened(path: str, setting: str) -> Mapping[str, Callable[[], Tensor]]:
    """The arrays of a file or a folder, by name, as functions that read them."""
    source = Path(path).expanduser()
    if source.is_dir():
        return {file.stem: partial(_mapped, file) for file in sorted(source.glob("*.npy"))}
    require(source.suffix in (".npz", ".safetensors"), setting, path, f"give {_FORMATS}")
    try:
        if source.suffix == ".npz":
            with source.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return {name: partial(_tensor, np.ascontiguousarray(file[name])) for name in file}
        from safetensors import safe_open

        tensors: Any = safe_open(source, framework="pt")
        return {name: partial(tensors.get_tensor, name) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:  # zip, numpy, safetensors and torch raise their own errors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise SettingError(setting, path, f"cannot read it ({reason}); give {_FORMATS}") from error


def _mapped(file: Path) -> Tensor:
    array = np.load(file, mmap_mode="c", allow_pickle=False)  # copy on write, since torch warns of read-only arrays
    return _tensor(array)


def _tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor of the same memory; a copy if its bytes have the other order, which torch does not read."""
    return torch.as_tensor(array.astype(array.dtype.newbyteorder("="), copy=False))


def _taken(arrays: Mapping[str, Callable[[], Tensor]], name: str, setting: str, path: str) -> Tensor:
    """Read the array of a name."""
    require(len(arrays) > 0, setting, path, f"it holds no arrays; give {_FORMATS}")
    others = ", ".join(sorted(arrays))
    require(name in arrays, setting, path, f"there is no array {name!r} beside {others}; give one array this name")
    try:
        return arrays[name]()
    except (OSError, TypeError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise SettingError(setting, name, f"cannot read this array ({reason}); give numbers") from error


def _channels_first(images: Tensor, last: bool | None, where: str) -> Tensor:
    """A view of shape (N, C, H, W)."""
    given = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
    kind = images.dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    require(kind, where, given, "give uint8, or floats of 16 bits and more in [0, 1]")
    require(
        images.ndim in (3, 4) and images.numel() > 0, where, given, "give shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
    )
    if images.ndim == 3:
        return images.unsqueeze(1)
    first_fits, last_fits = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    require(
        last is not None or first_fits != last_fits, where, given, "say where the channels are by data.channels_last"
    )
    return images.movedim(-1, 1) if last or (last is None and last_fits) else images


def _check_range(images: Tensor, where: str) -> None:
    if images.is_floating_point():
        low, high = (float(end) for end in torch.aminmax(images))
        require(0 <= low <= high <= 1, where, f"values from {low:g} to {high:g}", "give floats in [0, 1], or uint8")
