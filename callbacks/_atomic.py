"""Checkpoint files that are written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from robust.folders import replacing


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
