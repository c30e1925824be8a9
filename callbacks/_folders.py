"""The log folder of a run; no two runs share one."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from pytorch_lightning import Trainer

from robust.checkpoints import is_elsewhere
from robust.errors import SettingError

RECORDS = ("results.json", "predictions.csv")  # not config.yaml: it may be the user's, and is never replaced
_OF_RUNS = ("results.json", "config.yaml")


def log_folder(trainer: Trainer) -> Path:
    """The run's log folder; with ``fast_dev_run`` a temporary folder. Call this in all processes."""
    return _temporary_folder() if is_dry(trainer) else Path(trainer.log_dir or trainer.default_root_dir)


def is_dry(trainer: Trainer) -> bool:
    """Whether the run must leave no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def claim_folder(trainer: Trainer, checkpoint: str | Path | None) -> Path:
    """The log folder, after a check that it holds no other run. Call this in all processes.

    A run that resumes from a checkpoint in the folder, or evaluates one, may write into it.

    Args:
        trainer: trainer of the run.
        checkpoint: initial checkpoint of the run: a path, or Lightning's ``last``, ``best`` or ``hpc``.

    Raises:
        SettingError: if the folder holds another run's record or checkpoints, or is not a folder.
    """
    folder = log_folder(trainer)
    name = _other_run(folder, checkpoint) if trainer.is_global_zero else None
    if (name := trainer.strategy.broadcast(name)) is not None:
        remedy = f"it holds {name} of another run; give an empty folder, or resume from a checkpoint in it"
        raise SettingError("trainer.default_root_dir", str(folder), remedy)
    return folder


def _other_run(folder: Path, checkpoint: str | Path | None) -> str | None:
    """The name of a file of another run in the folder, None if there is none."""
    if checkpoint in ("last", "best", "hpc"):
        return None  # without the command line, which gives their paths: Lightning looks for these in the folder itself
    local = None if checkpoint is None or is_elsewhere(str(checkpoint)) else Path(checkpoint)
    if local is not None and any(_is_of_run(absolute(local), absolute(folder)) for absolute in (Path.resolve, _normal)):
        return None  # the checkpoint is in the folder, or in a linked part of it
    for name in RECORDS:
        if (folder / name).exists():
            return name
    return next((f"checkpoints/{path.name}" for path in (folder / "checkpoints").glob("*.ckpt")), None)


def _is_of_run(checkpoint: Path, folder: Path) -> bool:
    """Whether the folder is that of the run that wrote the checkpoint: no folder in between is of a run."""
    between = checkpoint.parents[: checkpoint.parents.index(folder)] if folder in checkpoint.parents else ()
    return folder in checkpoint.parents and not any((path / name).exists() for path in between for name in _OF_RUNS)


def _normal(path: Path) -> Path:
    """An absolute path without ``..``, whose links are not followed."""
    return Path(os.path.normpath(path.absolute()))


@cache
def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="fast_dev_run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
