"""Results of single examples on disk, so that a long evaluation goes on where it was interrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks._atomic import replacing
from robust.checkpoints import read_saved
from robust.errors import require
from robust.folders import check_writable

Rows = dict[str, Tensor]
PLAIN = (bool, int, float, str, type(None))


class SavedRows:
    """A folder with what each process has done: columns (N, ...), and what they depend on.

    A file that is there is whole. Any number of processes can go on with what any other number has done.

    Args:
        setting: name of the folder's setting, for the errors.
        folder: made if absent; without one nothing is kept.
        depends_on: plain values by name; rows of others are refused.
    """

    def __init__(self, setting: str, folder: Path | None, depends_on: dict[str, Any]) -> None:
        self.setting, self.folder, self.depends_on = setting, folder, depends_on

    def read(self) -> Rows:
        """All rows in the folder, empty if there are none.

        Raises:
            SettingError: if they depend on something else, a file is none of these, or the folder cannot be written.
        """
        if self.folder is not None:
            check_writable(self.folder, self.setting)
        found: list[Rows] = []
        for path in sorted(self.folder.glob("process-*.pt")) if self.folder is not None else []:
            remedy = "it holds no results of an evaluation; give another folder"
            state = read_saved(path, self.setting, remedy)
            require(isinstance(state, dict), self.setting, str(path), remedy)
            saved, rows = state.get("depends_on"), state.get("rows")
            require(isinstance(saved, dict) and _are_rows(rows), self.setting, str(path), remedy)
            differing = [name for name, value in self.depends_on.items() if saved.get(name) != value]
            remedy = f"it holds results of other {', '.join(differing)}: give another folder, or delete this one"
            require(not differing, self.setting, str(self.folder), remedy)
            found.append(rows)
        return joined(found)

    def write(self, rows: Rows, process: int) -> None:
        """Put all that a process has done so far in the place of what it had written before."""
        if self.folder is None or not rows:
            return
        path = self.folder / f"process-{process}.pt"
        rows = {name: column.cpu() for name, column in rows.items()}
        with replacing(path) as unfinished:
            torch.save({"depends_on": self.depends_on, "rows": rows}, unfinished)


def _are_rows(rows: Any) -> bool:
    """Whether these are columns of one length, with a ``place``."""
    if not isinstance(rows, dict) or "place" not in rows:
        return False
    columns = list(rows.values())
    tensors = all(isinstance(column, Tensor) and column.dim() > 0 for column in columns)
    return tensors and len({len(column) for column in columns}) == 1 and rows["place"].dim() == 1


def joined(parts: list[Rows]) -> Rows:
    """The parts' rows behind each other; of rows with the same ``place``, the first."""
    parts = [part for part in parts if part]
    if not parts:
        return {}
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    first = {place: row for row, place in reversed(list(enumerate(whole["place"].tolist())))}
    kept = torch.tensor(sorted(first.values()), dtype=torch.long)
    return {name: column[kept] for name, column in whole.items()}


def plain(settings: object) -> dict[str, Any]:
    """An object's class and public settings as plain values, those of what it holds included."""
    public = {name: value for name, value in vars(settings).items() if not name.startswith("_")}
    values = {name: value if isinstance(value, PLAIN) else plain(value) for name, value in public.items()}
    return {"class": type(settings).__name__, **values}


def digest(tensors: Iterable[Tensor]) -> str:
    """A short name for the tensors' values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
