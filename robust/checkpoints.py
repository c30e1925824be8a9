"""Files that torch has saved, read as data: nothing in them is run."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from robust.errors import SettingError, require


def read_saved(
    path: str | Path,
    setting: str,
    remedy: str,
    map_location: torch.device | str = "cpu",
    given: str | None = None,
) -> Any:
    """What ``torch.save`` has written: tensors, numbers, text, and nests of them.

    Args:
        path: of the file.
        setting: name of the path's setting, for the errors.
        remedy: what to say where the file is none of these.
        map_location: where tensors go.
        given: what the errors say was given, the path by default.

    Raises:
        SettingError: if the file is absent, cannot be read, is damaged, or holds objects of other classes, which could
            run code.
    """
    file, name = Path(path), given or str(path)
    require(file.is_file(), setting, name, f"no such file; {remedy}")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # torch itself does not look at the checksums
        require(damaged is None, setting, name, f"it is damaged at {damaged}; {remedy}")
        return torch.load(file, map_location=map_location, weights_only=True)
    except SettingError:
        raise
    except zipfile.BadZipFile as error:
        raise SettingError(setting, name, f"its end is missing, or it is of another kind; {remedy}") from error
    except OSError as error:
        raise SettingError(setting, name, f"it cannot be read ({error.strerror or error}); {remedy}") from error
    except Exception as error:  # of a broken archive torch raises whatever its bytes lead to
        raise SettingError(setting, name, f"{_reason(error)}; {remedy}") from error


def _reason(error: Exception) -> str:
    if "weights_only" in str(error) or "Unsupported" in str(error):
        return "it holds more than tensors and plain values, which is not read as it could run code"
    return f"it is damaged ({type(error).__name__})"
