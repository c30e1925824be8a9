"""Rows of a report: runs that differ only in their seeds, with the mean and std over them."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from reports import settings
from reports.runs import Run
from robust.metric_names.registry import MetricInfo, find

MOST_DETAILS = 4
SHOWN = ("accuracy/", "certified_accuracy/", "weighted_accuracy/", "robustness_score/", "training_cost/")


@dataclass(frozen=True)
class Value:
    """Mean of a metric over runs, its sample std (None for a single run), and the number of runs."""

    mean: float
    std: float | None
    n: int


@dataclass
class Row:
    """Runs of one experiment, each with another seed.

    Args:
        runs: runs, at least one.
        label: name that distinguishes this row from the others.
        caveats: what a reader must know before comparing this row with others, one text each.
    """

    runs: list[Run]
    label: str = ""
    caveats: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        """Class of the method."""
        return str(self.runs[0].identity.get("method") or "unknown method")

    def values(self, metric: str) -> list[float]:
        """The metric's values in the runs that have it."""
        return [value for run in self.runs if (value := run.metrics.get(metric)) is not None]

    def value(self, metric: str) -> Value | None:
        """The metric over the runs; None if no run has it."""
        values = self.values(metric)
        if not values:
            return None
        return Value(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics that any run has."""
        return {name for run in self.runs for name, value in run.metrics.items() if value is not None}


def group(runs: list[Run]) -> list[Row]:
    """Group runs to rows, in the order of the runs; a repetition with the same seed starts a row of its own.

    The name of a selected checkpoint has its epoch, which differs between seeds: it distinguishes rows only where a
    training has several such checkpoints.
    """
    selected = Counter((_experiment(run, "selected"), run.seed) for run in runs if _is_selected(run))
    several = {experiment for (experiment, _), count in selected.items() if count > 1}
    rows: dict[tuple[str, int], Row] = {}
    for run in runs:
        one = _is_selected(run) and _experiment(run, "selected") not in several
        key, repetition = _experiment(run, "selected" if one else run.checkpoint), 0
        while (row := rows.get((key, repetition))) is not None and any(other.seed == run.seed for other in row.runs):
            repetition += 1
        rows.setdefault((key, repetition), Row([])).runs.append(run)
    result = list(rows.values())
    _label(result)
    return result


def is_detail(metric: str) -> bool:
    """Whether a metric is a detail of another one, which narrow tables leave out."""
    return metric.endswith(("/vote", "/noise_off", "/area", "/clean/attacked", "/ibp", "/crown_ibp"))


def columns(rows: list[Row], stage: str) -> list[tuple[str, MetricInfo]]:
    """The stage's accuracies and scores with their entries in the registry: clean, certified, attacked, then others."""
    names = {
        name for row in rows for name in row.metrics if name.startswith(tuple(f"{stage}/{kind}" for kind in SHOWN))
    }
    infos = {name: find(name) for name in names if not name.endswith(("/low", "/high"))}
    judged = [(name, info) for name, info in infos.items() if info is not None and info.direction != "none"]
    accuracies = ("accuracy/clean", "certified_accuracy", "accuracy/union", "accuracy/average", "accuracy/worst")
    order = (*accuracies, "accuracy/", "robustness")

    def rank(column: tuple[str, MetricInfo]) -> tuple[int, str]:
        metric = column[0].removeprefix(f"{stage}/")
        return next((index for index, start in enumerate(order) if metric.startswith(start)), len(order)), metric

    return sorted(judged, key=rank)


def _is_selected(run: Run) -> bool:
    """Whether a known training's checkpoint is another one than the last."""
    return run.training is not None and run.checkpoint != "last"


def _experiment(run: Run, checkpoint: str) -> str:
    """What was trained, as text that is equal for runs that differ by their seed alone, and which weights."""
    record = run.identity
    config = record.get("config") or {}
    what = settings.experiment(record) if config else record.get("command")
    unknown = None if run.training else run.checkpoint  # two such checkpoints may differ in more than the seed
    given = config.get("checkpoint") or {} if checkpoint == "selected" else {}
    by = [given.get("monitor"), given.get("mode")]
    return settings.text([record.get("method"), what, checkpoint, by, unknown, run.path if not config else None])


def _label(rows: list[Row]) -> None:
    """Label each row with its method and with the settings in which it differs from the method's other rows."""
    for method in dict.fromkeys(row.method for row in rows):
        _add_settings([row for row in rows if row.method == method], f"{method}: ", method)
    for label, same in _of_one_label(rows):  # rows of the same classes, whose settings differ
        _add_settings(same, f"{label}, ", label)
    for label, same in _of_one_label(rows):
        for row in same:
            row.label = f"{label}, {row.runs[0].name}"


def _of_one_label(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """The labels that several rows have, each with these rows."""
    labels = dict.fromkeys(row.label for row in rows)
    found = [(label, [row for row in rows if row.label == label]) for label in labels]
    return [(label, same) for label, same in found if len(same) > 1]


def _add_settings(rows: list[Row], start: str, alone: str) -> None:
    """Label each row with ``start`` and the settings in which the rows differ, or with ``alone`` if it has none."""
    flat = [settings.experiment(row.runs[0].identity) for row in rows]
    differing = _differing(flat)
    for row, each in zip(rows, flat, strict=True):
        details = [
            f"{name.removeprefix('model.')} {_short(each[name])}" for name in differing if each.get(name) is not None
        ]
        more = f", {len(details) - MOST_DETAILS} more settings" if len(details) > MOST_DETAILS else ""
        row.label = f"{start}{', '.join(details[:MOST_DETAILS])}{more}" if details else alone


def _differing(flat: list[dict[str, Any]]) -> list[str]:
    """Names of settings with more than one value: the model's first, and classes before their settings."""
    names = dict.fromkeys(name for of_row in flat for name in of_row)
    values = {name: {settings.text(of_row.get(name)) for of_row in flat} for name in names}
    differing = {name for name in names if len(values[name]) > 1 and name != "model"}  # "model" is the method
    # where classes differ, so do their settings
    outer = {name for name in differing if not any(name.startswith(f"{other}.") for other in differing)}
    return sorted(outer, key=lambda name: (not name.startswith("model"), name.count("."), name))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
