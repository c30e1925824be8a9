"""A report: rows, columns, and differences from a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reports.caveats import add_caveats
from reports.comparison import Difference, compare, shown_p
from reports.rows import Row, columns, group, is_detail
from reports.runs import read_runs
from robust.errors import SettingError
from robust.metric_names.registry import MetricInfo

Stage = Literal["test", "val"]


@dataclass(frozen=True)
class Report:
    """The contents of a report, in every format.

    Args:
        rows: rows, one for each experiment.
        columns: metrics of the stage, with units and directions.
        stage: ``test`` or ``val``.
        baseline: index of the row with which the others are compared.
        differences: differences from the baseline, by metric and the row's index.
    """

    rows: list[Row]
    columns: list[tuple[str, MetricInfo]]
    stage: Stage
    baseline: int
    differences: dict[str, dict[int, Difference]]

    def short(self, metric: str) -> str:
        """Name of a metric without the stage, which is the same in the whole report."""
        return metric.removeprefix(f"{self.stage}/")

    def statements(self, index: int) -> Iterator[str]:
        """Statements on a row's differences from the baseline, one for each verdict and test."""
        by_test: dict[tuple[str, str], list[str]] = {}
        for name, _ in self.columns:
            difference = self.differences[name].get(index)
            if difference is not None and difference.p is not None and not is_detail(name):
                by_test.setdefault(difference.verdict, []).append(f"{self.short(name)} (p = {shown_p(difference.p)})")
        for (verdict, test), metrics in by_test.items():
            yield f"{verdict[0].upper()}{verdict[1:]} by {test}: {', '.join(metrics)}"


def make_report(paths: Iterable[str | Path], stage: Stage = "test", baseline: str | None = None) -> Report:
    """Read runs and compare them.

    Args:
        paths: folders of runs, folders that contain these, or files like ``results.json``.
        stage: stage of the metrics.
        baseline: label of the row to compare with, or a part of its label or of a run's name; by default the first row
            that has a metric of the stage.

    Raises:
        SettingError: if a path has no records, or not exactly one row fits ``baseline``.
    """
    rows = group(read_runs(paths))
    add_caveats(rows, stage)
    metrics = columns(rows, stage)
    measured = (index for index, row in enumerate(rows) if row.metrics.intersection(name for name, _ in metrics))
    chosen = next(measured, 0) if baseline is None else _baseline(rows, baseline)
    differences = {name: compare(rows, rows[chosen], name) for name, _ in metrics}
    return Report(rows, metrics, stage, chosen, differences)


def _baseline(rows: list[Row], given: str) -> int:
    """Index of the row with this label, or else of the only row with this text in its label or in a run's name."""
    equal = [index for index, row in enumerate(rows) if row.label == given]
    fitting = equal or [
        index for index, row in enumerate(rows) if given in row.label or any(given in run.name for run in row.runs)
    ]
    if len(fitting) != 1:
        labels = ", ".join(row.label for row in rows)
        raise SettingError("baseline", given, f"{len(fitting)} rows fit; give a part of one of these: {labels}")
    return fitting[0]
