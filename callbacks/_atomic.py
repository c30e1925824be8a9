"""Files that are whole or not there: written beside their target and moved into its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from robust.errors import SettingError

UNFINISHED = ".unfinished"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write what will be at ``path``; it is moved there at the end, and removed after an error.

    A process that is killed leaves one file behind, which the next writer of the same target overwrites.

    Raises:
        SettingError: if the folder cannot be written, or is full.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # or a crash may keep the name and lose the contents
        unfinished.replace(path)
    except OSError as error:
        raise SettingError("log folder", str(path), f"it cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left in a folder that no other process writes into."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's, but for writing: through the temporary folder it may leave half a checkpoint on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            SettingError: if the folder cannot be written, or is full.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as unfinished:
            try:
                torch.save(checkpoint, unfinished)
            except RuntimeError as error:  # torch's for a full disk
                raise OSError(f"{error}".split("\n")[0]) from error
