"""The user's own CSV table with the paths and classes of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datamodules.csv_rows import Row, read_rows, split_of
from datamodules.decoding import EXTENSIONS, is_image
from datamodules.own_data import OwnImages, Sample
from robust.errors import require


class Table(OwnImages):
    """Images whose paths and classes are in a CSV file in UTF-8; its first line names the columns.

    Classes are the sorted labels (as numbers, if all are whole numbers).

    Args:
        csv: path of the table; ``predict`` does not need it if ``class_names`` and ``predict_from`` are given.
        root: folder to which the paths are relative; by default the table's.
        path_column: column of the paths.
        label_column: column of the classes.
        split_column: column with train, val or test for each image (val may be absent); by default ``split`` if the
            table has this column, else each class is divided by fractions.
        **settings: settings of :class:`OwnImages`.

    Raises:
        SettingError: if the table or an image is absent, or a value does not fit; the message names the file and line.
    """

    def __init__(
        self,
        *,
        csv: str,
        root: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        split_column: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.csv, self.root = csv, root
        self.path_column, self.label_column, self.split_column = path_column, label_column, split_column
        self.read_classes()

    @property
    def source(self) -> tuple[str, Path]:
        """The setting ``data.csv`` and the folder of the paths."""
        return "data.csv", (Path(self.csv).parent if self.root is None else Path(self.root)).expanduser()

    def list_samples(self) -> list[Sample]:
        """The images of all rows."""
        given = [] if self.split_column is None else [self.split_column]
        rows = read_rows(self.csv, "data.csv", [self.path_column, self.label_column, *given])
        column = self.split_column or ("split" if "split" in rows[0] else None)
        samples = [self._sample(row, column) for row in rows]
        lines: dict[str, str] = {}
        for row, sample in zip(rows, samples, strict=True):
            first = lines.setdefault(os.path.realpath(sample.path), row.where)  # a/../b and a link to b are b
            remedy = f"this image is already in {first}; remove one of the rows"
            require(first == row.where, row.where, row[self.path_column], remedy)
        return samples

    def _sample(self, row: Row, split_column: str | None) -> Sample:
        name, label = row[self.path_column], row[self.label_column].strip()
        path = self.source[1] / name
        require(path.is_file(), row.where, name, f"there is no file {path}; correct the path, or data.root")
        remedy = f"its format is not one of {', '.join(EXTENSIONS)}; convert or remove it"
        require(is_image(path), row.where, name, remedy)
        require(label != "", row.where, label, f"give the class of {name} in the column {self.label_column!r}")
        known = self.given_names is None or label in self.given_names
        require(known, row.where, label, f"it is not one of data.class_names {self.given_names}; correct one of them")
        return Sample(path, label, None if split_column is None else split_of(row, split_column))
