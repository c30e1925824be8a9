"""Reads the records of runs from folders, or from files in the format of ``results.json``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reports import settings
from reports.records import FILE, Record, read_records, superseded
from robust.errors import SettingError, require


@dataclass
class Run:
    """A trained model and all its measured metrics.

    Args:
        path: file of the training's record, else of the first evaluation's.
        checkpoint: name of the file of the weights; ``last`` for the weights at the end of the training.
        training: record of the training; None if there is none.
        evaluations: records of the validations and tests of these weights, in the order of the files.
        metrics: values by name, including the stage; the last value if a metric was measured repeatedly.
        repeated: names of metrics that were measured again with another value.
    """

    path: Path
    checkpoint: str
    training: Record | None = None
    evaluations: list[Record] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path | None:
        """The run's folder; None for a record without one."""
        return self.path.parent if self.path.name == FILE else None

    @property
    def records(self) -> list[Record]:
        """The training's record and those of the evaluations."""
        return ([self.training] if self.training else []) + self.evaluations

    @property
    def identity(self) -> Record:
        """The record that says what was trained: the training's, else the first evaluation's."""
        return self.records[0]

    @property
    def name(self) -> str:
        """The folder or the file, with the checkpoint unless this is the last one."""
        path = self.path.parent if self.folder else self.path.with_suffix("")
        checkpoint = "" if self.checkpoint == "last" else f" ({self.checkpoint})"
        return f"{path}{checkpoint}"

    @property
    def seed(self) -> Any:
        """Seed of the training."""
        return self.identity.get("seed")

    @property
    def data(self) -> str:
        """The evaluated data as text that is equal for equal data; empty if no record names any."""
        return settings.data((self.evaluations or self.records)[-1])

    def add(self, kind: str, record: Record) -> None:
        """Add a record of ``fit``, ``validate`` or ``test``."""
        if kind == "fit":
            self.training = record | {"wall_time": _training_time(record)}
        else:
            self.evaluations.append(record)
        for name, value in record["metrics"].items():
            if kind == "test" and name in self.metrics and self.metrics[name] != value:
                self.repeated.add(name)
            self.metrics[name] = value

    def outcomes(self, metric: str) -> Record | None:
        """The ``outcomes`` of the last evaluation that recorded them for this metric; None if none did."""
        recorded = [outcomes for record in self.evaluations if metric in (outcomes := record.get("outcomes") or {})]
        return recorded[-1][metric] if recorded else None

    def margins(self) -> dict[str, list[float]]:
        """Quantiles of the certified margins, by metric."""
        return {name: values for record in self.evaluations for name, values in (record.get("margins") or {}).items()}


def _training_time(record: Record) -> float | None:
    """Seconds of a training, at least those of its steps.

    Older records of a resumed training have the time of its last process alone.
    """
    steps = (record.get("training_cost") or {}).get("seconds")
    known = [seconds for seconds in (record.get("wall_time"), steps) if seconds is not None]
    return max(known, default=None)


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """The runs in files, and in folders at every depth.

    Evaluations of one checkpoint are one run, also from several folders, if the checkpoint is still where the training
    wrote it.

    Raises:
        SettingError: if a path does not exist or has no records, or a file has another format.
    """
    runs: dict[tuple[Path, str], Run] = {}
    for file in dict.fromkeys(file for path in paths for file in _files(Path(path))):
        records = read_records(file)
        trained = _folder(_training(records) or {})
        earlier = superseded(records)
        for name, record in records.items():
            kind = name.partition("-")[0]
            owner, checkpoint = (file, "last") if kind == "fit" else _origin(file, record, trained)
            if name in earlier and (owner, checkpoint) == (file, "last"):
                continue  # of the weights before the training went on
            key = (owner.resolve(), checkpoint)
            run = runs.setdefault(key, Run(owner, checkpoint))
            run.add(kind, record)
            training = _training(read_records(owner)) if run.training is None and owner.is_file() else None
            if training is not None:
                run.training = training | {"wall_time": _training_time(training)}
    return list(runs.values())


def _training(records: dict[str, Record]) -> Record | None:
    """The last record of a training; None if there is none."""
    trainings = [record for name, record in records.items() if name.partition("-")[0] == "fit"]
    return trainings[-1] if trainings else None


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(_below(path))
        if not files:
            raise SettingError("runs", str(path), f"it has no {FILE}; {_remedy(path)}")
        return files
    require(path.is_file(), "runs", str(path), f"it does not exist; give a log folder or a {FILE}")
    return [path]


def _below(folder: Path) -> Iterator[Path]:
    """The files of records in a folder, including linked folders, each of which is searched once."""
    seen: set[Path] = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        real = Path(current).resolve()
        if real in seen:  # a link to a folder that was searched before, or to a parent folder
            folders.clear()
            continue
        seen.add(real)
        if FILE in files:
            yield Path(current) / FILE


def _remedy(folder: Path) -> str:
    """Remedy for a folder without ``results.json``: its own files, if it has JSON files with other names."""
    other = min(folder.rglob("*.json"), default=None)
    if other is None:
        return "give the log folder of a run, or a folder of log folders"
    pattern = folder.joinpath(*("*" for _ in other.relative_to(folder).parts[1:]), "*.json")
    return f"name those of its files that are records, such as {pattern}"


def _folder(record: Record) -> Path | None:
    """The run's ``default_root_dir`` according to its record, which may have been copied elsewhere."""
    folder = ((record.get("config") or {}).get("trainer") or {}).get("default_root_dir")
    return Path(folder) if folder else None


def _origin(file: Path, record: Record, folder: Path | None) -> tuple[Path, str]:
    """The file of the training whose checkpoint was evaluated, and the checkpoint's name.

    Args:
        file: file of the record.
        record: record of the evaluation.
        folder: folder of the training in the same file; None if the file has no training.
    """
    given = record.get("checkpoint", (record.get("config") or {}).get("ckpt_path"))
    if given is None or given in ("last", "best", "hpc"):
        return file, given or "last"
    if re.match(r"zoo:|\w+://", given):  # of the zoo, or a URL
        return file, given
    checkpoint = Path(given)
    trained = checkpoint.parent.parent / FILE
    if folder is not None and checkpoint.is_relative_to(folder):
        nested = _folder(_training(read_records(trained)) or {}) if trained.is_file() else None
        if nested in (None, folder):
            return file, checkpoint.stem
    if trained.is_file() and (checkpoint.stem != "last" or not _went_on(record, trained)):
        return trained, checkpoint.stem
    return file, checkpoint.stem if checkpoint.stem != "last" else str(checkpoint)


def _went_on(evaluation: Record, trained: Path) -> bool:
    """Whether the training in the file has gone on since the evaluation of its last weights, by its passes."""
    passes = [
        ((record or {}).get("training_cost") or {}).get("forward_equivalents")
        for record in (evaluation, _training(read_records(trained)))
    ]
    return None not in passes and passes[0] != passes[1]
