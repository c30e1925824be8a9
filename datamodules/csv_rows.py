"""Reads CSV files, with errors that name the file, the line and the column."""

from __future__ import annotations

import csv
from pathlib import Path

from datamodules.base import Split
from datamodules.own_data import SPLITS
from robust.errors import SettingError, require


class Row(dict[str, str]):
    """The values of a row, by the name of the column.

    Attributes:
        where: setting, line and file of the row, for errors.
    """

    where: str


def read_rows(file: str, setting: str, columns: list[str]) -> list[Row]:
    """The rows of a CSV file in UTF-8, whose first line names the columns.

    Args:
        file: path of the file.
        setting: setting that names the file, for errors.
        columns: columns that must exist.

    Raises:
        SettingError: if the file is absent, is not a CSV file in UTF-8, has no rows, lacks a column or a value, or
            has two columns of one name.
    """
    path = Path(file).expanduser()
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            names = list(reader.fieldnames or [])
            twice = next((name for name in names if names.count(name) > 1), None)
            require(twice is None, setting, file, f"it has two columns {twice!r}; rename one")
            for column in columns:
                require(column in names, setting, file, f"it has no column {column!r}, but {names}; name another one")
            rows = [_row(values, f"{setting}, line {reader.line_num} of {file}") for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingError(setting, file, f"cannot read it ({reason}); give a CSV file in UTF-8") from error
    require(len(rows) > 0, setting, file, "it has no rows below the names of the columns")
    return rows


def _row(values: dict[str, str], where: str) -> Row:
    fits = None not in values and None not in values.values()  # DictReader has None for too many or too few values
    require(fits, where, ",".join(str(value) for value in values.values()), "give one value for each column")
    row = Row(values)
    row.where = where
    return row


def split_of(row: Row, column: str) -> Split:
    """The split that a column of a row names.

    Raises:
        SettingError: if the column does not name a split.
    """
    for split in SPLITS:
        if row[column] == split:
            return split
    raise SettingError(row.where, row[column], f"give {', '.join(SPLITS)} in the column {column!r}")
