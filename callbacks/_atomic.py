"""Atomic writes: a file is written under a temporary name beside its target, and then renamed."""

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
        raise SettingError("log folder", str(path), f"it cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of killed processes; no other process may write into the folder at that time."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files with atomic writes.

    Lightning itself copies the file from the temporary folder, which may be on another disk.
    """

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
            except RuntimeError as error:  # torch raises it for a full disk
                raise OSError(f"{error}".split("\n")[0]) from error
