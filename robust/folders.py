"""Folders that something is written into: looked at before the work begins, and files that are whole or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robust.errors import SettingError

PROBE_BYTES = 65_536
UNFINISHED = ".unfinished"


def check_writable(folder: str | Path, setting: str) -> None:
    """Write a file without a name into the folder, or where it will be made; nothing remains.

    Args:
        folder: need not exist.
        setting: name of its setting, for the error.

    Raises:
        SettingError: if it is read-only, full, or a file.
    """
    path = Path(folder).absolute()
    try:
        location = next(parent for parent in (path, *path.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=location) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingError(setting, str(folder), f"it cannot be written ({reason}); give a folder that can") from error


@contextmanager
def replacing(path: Path, setting: str = "log folder") -> Iterator[Path]:
    """Yield a temporary path to write; on exit rename the file to ``path``, after an error remove it.

    A killed process leaves one temporary file, which the next writer of the same target overwrites.

    Raises:
        SettingError: if the folder cannot be written, or is full.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # without this, a crash may leave an empty file of the final name
        unfinished.replace(path)
    except OSError as error:
        raise SettingError(setting, str(path), f"it cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of killed processes; no other process may write into the folder at that time."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)
