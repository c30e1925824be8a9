"""A report: rows, columns, and differences from a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reports.caveats import add_caveats
from reports.comparison import Difference, compare
from reports.rows import Row, columns, group, is_detail
from reports.runs import read_runs
from robust.errors import SettingError
from robust.metric_names.registry import MetricInfo

Stage = Literal["test", "val"]


@dataclass(frozen=True)
class Report:
    """What all formats show.

    Args:
        rows: runs by experiment.
        columns: metrics of the stage, with units and directions.
        stage: ``test`` or ``val``.
        baseline: index of the row that others are compared with.
        differences: by metric and the row's index.
    """

    rows: list[Row]
    columns: list[tuple[str, MetricInfo]]
    stage: Stage
    baseline: int
    differences: dict[str, dict[int, Difference]]

    def short(self, metric: str) -> str:
        """A metric's name without the stage, which is that of the whole report."""
        return metric.removeprefix(f"{self.stage}/")

    def statements(self, index: int) -> Iterator[str]:
        """Which of a row's differences from the baseline exceed chance, a statement for each test and verdict."""
        by_test: dict[tuple[str, str], list[str]] = {}
        for name, _ in self.columns:
            each = self.differences[name].get(index)
            if each is not None and each.p is not None and not is_detail(name):
                by_test.setdefault(each.verdict, []).append(f"{self.short(name)} (p = {each.p:.2g})")
        for (verdict, test), metrics in by_test.items():
            yield f"{verdict[0].upper()}{verdict[1:]} by {test}: {', '.join(metrics)}"


def make_report(paths: Iterable[str | Path], stage: Stage = "test", baseline: str | None = None) -> Report:
    """Read runs and compare them.

    Args:
        paths: run folders, folders of such, or files like ``results.json``.
        stage: whose metrics.
        baseline: label of the row to compare with, or a part of its label or of a run's name; by default the first row.

    Raises:
        SettingError: if a path has no records, or not exactly one row fits ``baseline``.
    """
    rows = group(read_runs(paths))
    add_caveats(rows, stage)
    chosen = 0 if baseline is None else _baseline(rows, baseline)
    found = columns(rows, stage)
    differences = {name: compare(rows, rows[chosen], name) for name, _ in found}
    return Report(rows, found, stage, chosen, differences)


def _baseline(rows: list[Row], given: str) -> int:
    """Index of the row with this label, else of the one row that has it in its label or in a run's name."""
    equal = [index for index, row in enumerate(rows) if row.label == given]
    fitting = equal or [
        index for index, row in enumerate(rows) if given in row.label or any(given in run.name for run in row.runs)
    ]
    if len(fitting) != 1:
        labels = ", ".join(row.label for row in rows)
        raise SettingError("baseline", given, f"{len(fitting)} rows fit; give a part of one of these: {labels}")
    return fitting[0]
