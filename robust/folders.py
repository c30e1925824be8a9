"""Folders that something will be written into, looked at before the work begins."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from robust.errors import SettingError

PROBE_BYTES = 65_536


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
