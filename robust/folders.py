"""Folders that something will be written into, looked at before the work begins."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from robust.errors import SettingError

PROBE_BYTES = 65_536


def check_writable(folder: str | Path, setting: str) -> None:
    """Write a file into the folder and remove it; folders that were made for it are removed too.

    Args:
        folder: need not exist.
        setting: name of its setting, for the error.

    Raises:
        SettingError: if the folder cannot be made, is read-only or full, or is a file.
    """
    path = Path(folder)
    made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingError(setting, str(folder), f"it cannot be written ({reason}); give a folder that can") from error
    finally:
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:  # the innermost first
        try:
            folder.rmdir()
        except (OSError, ValueError):
            return
