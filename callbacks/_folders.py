"""The folder that a run writes into, of its own."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from pytorch_lightning import Trainer

from robust.errors import SettingError

RECORDS = ("results.json", "predictions.csv")  # a config.yaml may be the user's, and is never replaced


def log_folder(trainer: Trainer) -> Path:
    """The run's log folder, to be asked in all processes; of ``fast_dev_run`` one that is gone afterwards."""
    return _passing_folder() if is_dry(trainer) else Path(trainer.log_dir or trainer.default_root_dir)


def is_dry(trainer: Trainer) -> bool:
    """Whether the run is to leave nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def claim_folder(trainer: Trainer, checkpoint: str | Path | None) -> Path:
    """The log folder, refused where it holds another run; to be asked in all processes.

    A run that goes on from a checkpoint in the folder, or evaluates one, belongs there.

    Args:
        trainer: whose folder it is.
        checkpoint: that the run begins with: a path, or Lightning's ``last``, ``best`` or ``hpc``.

    Raises:
        SettingError: if it holds another run's record or checkpoints, or is no folder.
    """
    folder = log_folder(trainer)
    found = _foreign(folder, checkpoint) if trainer.is_global_zero else None
    if (found := trainer.strategy.broadcast(found)) is not None:
        remedy = f"it holds {found} of another run; give an empty folder, or go on from a checkpoint in it"
        raise SettingError("trainer.default_root_dir", str(folder), remedy)
    return folder


def _foreign(folder: Path, checkpoint: str | Path | None) -> str | None:
    """What of another run is in the folder."""
    if checkpoint in ("last", "best", "hpc"):
        return None  # those of the folder itself
    if checkpoint is not None and folder.resolve() in Path(checkpoint).resolve().parents:
        return None
    for name in RECORDS:
        if (folder / name).exists():
            return name
    return next((f"checkpoints/{path.name}" for path in (folder / "checkpoints").glob("*.ckpt")), None)


@cache
def _passing_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="fast_dev_run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
