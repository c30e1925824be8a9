"""Results of single examples on disk, so that a long evaluation continues after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust.checkpoints import read_saved
from robust.errors import require
from robust.folders import check_writable, replacing

Rows = dict[str, Tensor]


class SavedRows:
    """A folder with one file of results for each process: columns (N, ...), and the values on which they depend.

    Files are written atomically. Any number of processes can continue from the files of any other number.

    Args:
        setting: name of the folder's setting, for errors.
        folder: folder of the files, created if absent; None to save nothing.
        depends_on: plain values by name; rows that depend on other values are refused.
    """

    def __init__(self, setting: str, folder: Path | None, depends_on: dict[str, Any]) -> None:
        self.setting, self.folder, self.depends_on = setting, folder, depends_on

    def read(self) -> Rows:
        """All rows in the folder, empty if there are none.

        Raises:
            SettingError: if rows depend on other values, a file has no rows, or the folder cannot be written.
        """
        if self.folder is not None:
            check_writable(self.folder, self.setting)
        parts: list[Rows] = []
        for path in sorted(self.folder.glob("process-*.pt")) if self.folder is not None else []:
            remedy = "it holds no results of an evaluation; give another folder"
            state = read_saved(path, self.setting, remedy)
            require(isinstance(state, dict), self.setting, str(path), remedy)
            saved, rows = state.get("depends_on"), state.get("rows")
            require(isinstance(saved, dict) and _are_rows(rows), self.setting, str(path), remedy)
            differing = [name for name, value in self.depends_on.items() if saved.get(name) != value]
            remedy = f"it holds results of other {', '.join(differing)}: give another folder, or delete this one"
            require(not differing, self.setting, str(self.folder), remedy)
            parts.append(rows)
        return concatenate(parts)

    def write(self, rows: Rows, process: int) -> None:
        """Replace the file of a process by all rows that it has computed so far."""
        if self.folder is None or not rows:
            return
        path = self.folder / f"process-{process}.pt"
        rows = {name: column.cpu() for name, column in rows.items()}
        with replacing(path) as unfinished:
            torch.save({"depends_on": self.depends_on, "rows": rows}, unfinished)


def _are_rows(rows: Any) -> bool:
    """Whether these are columns of equal length, one of them ``index``."""
    if not isinstance(rows, dict) or "index" not in rows:
        return False
    columns = list(rows.values())
    tensors = all(isinstance(column, Tensor) and column.dim() > 0 for column in columns)
    return tensors and len({len(column) for column in columns}) == 1 and rows["index"].dim() == 1


def concatenate(parts: list[Rows]) -> Rows:
    """Concatenate the rows of the parts, in ascending order of ``index``; the first row of each index remains."""
    parts = [part for part in parts if part]
    if not parts:
        return {}
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    first = {index: row for row, index in reversed(list(enumerate(whole["index"].tolist())))}
    rows = torch.tensor([first[index] for index in sorted(first)], dtype=torch.long)
    return {name: column[rows] for name, column in whole.items()}
