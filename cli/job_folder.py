"""The log folder of a matrix' job: its locks, its note of the settings, and its records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cli.experiment import Job
from robust.errors import SettingError, require
from robust.folders import replacing


def _lock(job: Job) -> Path:
    """The file that is locked while a runner runs the job."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    return job.folder.with_suffix(".lock")


def process_lock(job: Job) -> Path:
    """The file that the job's training or test locks, which ends a moment later than a runner that is killed."""
    return _lock(job).with_suffix(".process.lock")


@contextmanager
def alone(job: Job) -> Iterator[None]:
    """Keep other processes, and other threads of this one, out of the job's folder.

    Raises:
        Timeout: if another one is in it after a second.
    """
    with FileLock(_lock(job), timeout=1), FileLock(process_lock(job), timeout=1) as own:
        own.release()  # no process of a runner that was killed is still there; the next process takes it
        yield


def runs_elsewhere(job: Job) -> bool:
    """Whether another process, or another thread of this one, runs the job."""
    try:
        with FileLock(_lock(job), timeout=0), FileLock(process_lock(job), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the run itself reports it
        return False


def claim(job: Job) -> None:
    """Note the run's settings in its log folder, so that another run's records are not used for this run.

    The files of a training that stopped before its first checkpoint are deleted. If the settings of the test have
    changed, its record and its saved results are deleted, so that it runs again. The settings include hashes of the
    user's files that they name.

    Raises:
        SettingError: if the folder holds a training with other settings, or other files.
    """
    settings, noted, folder = job.settings(), noted_settings(job), str(job.folder)
    if noted is None:
        names = [path.name for path in job.folder.iterdir()] if job.folder.is_dir() else []
        own = all(name.startswith(job.note.name) for name in names)  # a stop may have interrupted the writing of a note
        remedy = "it holds files that are not of a matrix' run; give another folder, or move them away"
        require(own, "folder", folder, remedy)
        noted = settings
    if not job.checkpoint.is_file():
        _require_unfinished(job)
        _empty(job.folder, job.note)
    else:
        what = "an edited file of yours" if differs_in_code_alone(noted["fit"], settings["fit"]) else "other settings"
        remedy = f"it holds a training with {what} ({job.note}); give another folder, or delete this one"
        require(are_noted(settings["fit"], noted["fit"]), "folder", folder, remedy)
    if not are_noted(settings["test"], noted["test"]):
        records = records_in(job.folder)
        if (job.folder / "test").is_dir():
            shutil.rmtree(job.folder / "test")
        if records.pop("test", None):
            write_json(job.folder / "results.json", records)
    write_json(job.note, settings)


def are_noted(settings: dict[str, Any], noted: dict[str, Any]) -> bool:
    """Whether these settings are the noted ones; notes of early versions have no hashes of the user's files."""
    known = settings if "own_code" in noted else {name: each for name, each in settings.items() if name != "own_code"}
    return known == noted


def differs_in_code_alone(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two settings of a training or a test are the same, except for the contents of the user's own files."""
    return one | {"own_code": None} == other | {"own_code": None}


def noted_settings(job: Job) -> dict[str, Any] | None:
    """The settings of the training and the test in the log folder; None if there is no note."""
    if not job.note.is_file():
        return None
    try:
        noted = json.loads(job.note.read_text(encoding="utf-8"))
        return {name: noted[name] for name in ("fit", "test")}
    except (ValueError, KeyError, TypeError):
        remedy = "it does not say with which settings the folder's training ran; delete the folder to run this again"
        raise SettingError("folder", str(job.note), remedy) from None


def _require_unfinished(job: Job) -> None:
    """Refuse a log folder without the last checkpoint that holds more than the files of a stopped training."""
    finished = "fit" in records_in(job.folder)
    remedy = f"its training has ended, but {job.checkpoint}, which the test needs, is missing; delete it to train again"
    require(not finished, "folder", str(job.folder), remedy)
    own = job.checkpoint.parent
    others = [path for path in job.folder.rglob("*.ckpt") if path.parent != own]
    remedy = f"it holds {others[0] if others else ''}, of another training; give another folder, or move it away"
    require(not others, "folder", str(job.folder), remedy)


def _empty(folder: Path, note: Path) -> None:
    """Delete the contents of a folder except its note; the folder may be a symbolic link or absent."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path == note:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically: a process that is killed leaves the previous file."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def records_in(folder: Path) -> dict[str, Any]:
    """The records of a run, by command; empty before the first.

    Raises:
        SettingError: if the file is damaged.
    """
    path = folder / "results.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError):
        raise SettingError(
            "folder", str(path), "it is no record of a run; delete the folder to run this again"
        ) from None


def recorded_seconds(job: Job) -> float:
    """Seconds of a finished job's training and test.

    Raises:
        SettingError: if its file is damaged.
    """
    try:
        records = json.loads(job.result.read_text(encoding="utf-8"))
        return sum(float(record["wall_time"]) for record in records.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingError(
            "results", str(job.result), "it is no record of a run; delete it to run this again"
        ) from None
