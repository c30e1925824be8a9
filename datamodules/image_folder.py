"""A folder of the user's own images, with a subfolder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datamodules.base import Split
from datamodules.csv_rows import read_rows, split_of
from datamodules.decoding import existing_folder, has_images, is_image, list_images, subfolders
from datamodules.own_data import SPLITS, OwnImages, Sample
from robust.errors import SettingError, require

OTHER_SPLITS = {"train", "val", "test", "training", "valid", "validation", "testing"}


class ImageFolder(OwnImages):
    """Images in a subfolder for each class: ``root/cat/1.png``, or ``root/train/cat/1.png`` with a folder per split.

    Classes are the names of the subfolders, sorted as numbers if all are whole numbers, else as text.
    All files below them must be images; hidden files are skipped.

    Args:
        root: path of the folder; ``predict`` does not read it if ``class_names`` and ``predict_from`` are given.
        split: ``folders`` for the subfolders train, val (may be absent) and test; ``fraction`` to divide each class; or
            the path of a CSV file with the columns ``path`` (relative to ``root``) and ``split``. By default
            ``folders`` if ``root`` has the subfolders train and test and no other than val, else ``fraction``; in the
            latter case, subfolders that all have names of splits, such as train and val alone, are refused.
        **settings: settings of :class:`OwnImages`.

    Raises:
        SettingError: if a folder is absent or has no image, or a file does not fit; the message names it.
    """

    def __init__(self, *, root: str, split: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.root, self.split = root, split
        self.read_classes()

    @property
    def source(self) -> tuple[str, Path]:
        """The setting ``data.root`` and its folder."""
        return "data.root", Path(self.root).expanduser()

    def list_samples(self) -> list[Sample]:
        """All images below the folders of the classes, each once."""
        samples = self._listed()
        _require_distinct(samples)
        return samples

    def _listed(self) -> list[Sample]:
        root = existing_folder(self.root, "data.root")
        found = subfolders(root, "data.root")
        names = {folder.name for folder in found if folder.name in SPLITS or has_images(folder, "data.root")}
        by_folders = {"train", "test"} <= names <= set(SPLITS) if self.split is None else self.split == "folders"
        if by_folders:
            remedy = f"{root} needs the subfolders train and test, and none but val beside them; it has {sorted(names)}"
            require({"train", "test"} <= names <= set(SPLITS), "data.split", self.split, remedy)
            return [sample for split in SPLITS if split in names for sample in self._classes(root / split, split)]
        if self.split is None:
            remedy = f"the subfolders {', '.join(sorted(names))} have names of splits; call them train, val (optional) "
            remedy += "and test, or set data.split: fraction if they are classes"
            require(not names or not {name.lower() for name in names} <= OTHER_SPLITS, "data.root", self.root, remedy)
            remedy = f"it has the subfolders {', '.join(sorted(names))}; set data.split: fraction if all are classes, "
            remedy += "or leave train, test and, if there is one, val alone in it"
            require(not {"train", "test"} <= names, "data.root", self.root, remedy)
        samples = self._classes(root, None)
        return samples if self.split in (None, "fraction") else self._with_splits(root, samples, str(self.split))

    def _classes(self, folder: Path, split: Split | None) -> list[Sample]:
        outside = next((path for path in sorted(folder.iterdir()) if path.is_file() and is_image(path)), None)
        remedy = "it is not in the subfolder of a class; move it into one (images without classes: data.predict_from)"
        require(outside is None, "data.root", str(outside), remedy)
        classes = subfolders(folder, "data.root")
        remedy = "the folder has no subfolders; give one for each class, with its images"
        require(len(classes) > 0, "data.root", str(folder), remedy)
        return [Sample(path, kind.name, split) for kind in classes for path in list_images(kind, "data.root")]

    def _with_splits(self, root: Path, samples: list[Sample], file: str) -> list[Sample]:
        """The samples with the splits that a CSV file gives."""
        splits: dict[Path, Split] = {}
        known = {sample.path for sample in samples}
        for row in read_rows(file, "data.split", ["path", "split"]):
            path = root / row["path"]
            remedy = f"there is no such image below the classes' folders of {root}; correct the path"
            require(path in known, row.where, row["path"], remedy)
            require(path not in splits, row.where, row["path"], "an earlier row has this image, too; give it once")
            splits[path] = split_of(row, "split")
        for path, _, _ in samples:
            if path not in splits:
                raise SettingError("data.split", file, f"it has no row for {path.relative_to(root)}; add one")
        return [Sample(path, label, splits[path]) for path, label, _ in samples]


def _require_distinct(samples: list[Sample]) -> None:
    """Refuse an image that is there twice by links: it may have two labels, or be in training and test."""
    found: dict[str, Sample] = {}
    for sample in samples:
        first = found.setdefault(os.path.realpath(sample.path), sample)
        require(first is sample, "data.root", str(sample.path), f"it is the same image as {first.path}; remove one")
