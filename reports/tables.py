"""A report as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from reports.report import Report
from reports.rows import Value, is_detail
from robust.metric_names.registry import ARROWS


def cell(value: Value | None, unit: str, *, digits: int = 2) -> str:
    """A value as text, fractions in percent, with std and n if there are several runs.

    >>> cell(Value(0.981, 0.004, 3), "fraction")
    '98.10 ± 0.40 (n 3)'
    """
    if value is None:
        return ""
    factor = 100 if unit == "fraction" else 1
    mean = f"{value.mean * factor:.{digits}f}" if unit == "fraction" else f"{value.mean:.4g}"
    if value.std is None:
        return mean
    std = f"{value.std * factor:.{digits}f}" if unit == "fraction" else f"{value.std:.2g}"
    return f"{mean} ± {std} (n {value.n})"


def markdown(report: Report) -> str:
    """The table in Markdown without detail columns, followed by differences from the baseline and caveats."""
    columns = [(name, info) for name, info in report.columns if not is_detail(name)]
    titles = [f"{_escaped(report.short(name))} {ARROWS[info.direction]}" for name, info in columns]
    lines = [f"| run | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
    for index, row in enumerate(report.rows):
        cells = [cell(row.value(name), info.unit) for name, info in columns]
        lines.append(
            f"| {_escaped(row.label)}{' (baseline)' if index == report.baseline else ''} | {' | '.join(cells)} |"
        )
    note = "Fractions in %; mean ± std over seeds (n)." if report.columns else "No metric of this stage."
    if details := len(report.columns) - len(columns):
        note += f" {details} more columns are in HTML, CSV and JSON: single bounds, votes, noise switched off."
    lines += ["", note, ""]
    for index, row in enumerate(report.rows):
        notes = [*report.statements(index), *row.caveats]
        lines += [f"* **{_escaped(row.label)}**: {_escaped('. '.join(notes))}." for _ in notes[:1]]
    return "\n".join(lines).rstrip() + "\n"


def comma_separated(report: Report) -> str:
    """One line for each row and metric: mean, std, n, difference from the baseline with its test and p, caveats."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "method", "metric", "unit", "mean", "std", "n", "difference", "test", "p", "caveats"])
    for entry in plain(report)["rows"]:
        for name, value in entry["metrics"].items():
            numbers = [value[key] for key in ("unit", "mean", "std", "n", "difference", "test", "p")]
            writer.writerow([entry["label"], entry["method"], name, *numbers, "; ".join(entry["caveats"])])
    return text.getvalue()


def plain(report: Report) -> dict[str, Any]:
    """The report as plain data, as the JSON file holds it."""
    rows = []
    for index, row in enumerate(report.rows):
        metrics = {}
        for name, info in report.columns:
            if (value := row.value(name)) is not None:
                difference = report.differences[name].get(index)
                metrics[name] = {"unit": info.unit, "mean": value.mean, "std": value.std, "n": value.n} | {
                    "difference": difference and difference.value,
                    "test": difference and difference.test,
                    "p": difference and difference.p,
                }
        runs = [{"name": run.name, "seed": run.seed, "commit": run.identity.get("commit")} for run in row.runs]
        rows.append(
            {"label": row.label, "method": row.method, "runs": runs, "caveats": row.caveats, "metrics": metrics}
        )
    return {"stage": report.stage, "baseline": report.rows[report.baseline].label, "rows": rows}


def as_json(report: Report) -> str:
    """The report as JSON."""
    return json.dumps(plain(report), indent=2, allow_nan=False) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
