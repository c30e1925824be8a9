"""A report as one HTML file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import vl_convert
import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from reports import charts
from reports.curves import read_curves
from reports.report import Report
from reports.rows import Row
from reports.tables import cell
from robust.metric_names.registry import ARROWS, MetricInfo

FOLDER = Path(__file__).parent / "template"
PICTURES = ("budgets", "adversarial_examples", "decision_boundary")  # folders that the pictures' callbacks write
MOST_COLUMNS = 8  # shown at first; the others by their boxes


class Column(NamedTuple):
    """A metric as the page shows it."""

    name: str
    info: MetricInfo
    arrow: str
    shown: bool


class Cell(NamedTuple):
    """A value as text, for sorting, and its difference from the baseline."""

    text: str
    order: float | None
    difference: str
    sentence: str
    mark: str


def html(report: Report) -> str:
    """The page."""
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    columns = [
        Column(report.short(name), info, ARROWS[info.direction], index < MOST_COLUMNS)
        for index, (name, info) in enumerate(report.columns)
    ]
    text = environment.get_template("page.html").render(
        report=report,
        columns=columns,
        cells=[_cells(report, index) for index in range(len(report.rows))],
        details=[_details(row) for row in report.rows],
        charts=_charts(report),
        style=_part("page.css"),
        script=_part("page.js"),
        vega=Markup(vl_convert.javascript_bundle().replace("</script", "<\\/script")),
    )
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _part(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _charts(report: Report) -> dict[str, Any]:
    rows, stage = report.rows, report.stage
    curves = {index: read_curves(row.runs[0]) for index, row in enumerate(rows)}
    return charts.draw(
        rows,
        charts.pareto_fronts(rows, stage),
        charts.by_epsilon(rows, stage),
        charts.margins(rows),
        charts.training(rows, curves),
    )


def _cells(report: Report, index: int) -> list[Cell]:
    cells = []
    for name, info in report.columns:
        value, found = report.rows[index].value(name), report.differences[name].get(index)
        scale, unit = (100, " points") if info.unit == "fraction" else (1, "")
        difference = f"{found.value * scale:+.3g}{unit}" if found else ""
        mark = (
            {True: "exceeds chance", False: "within chance", None: "not tested"}[found.exceeds_chance] if found else ""
        )
        order = None if value is None else value.mean
        cells.append(Cell(cell(value, info.unit), order, difference, found.sentence if found else "", mark))
    return cells


def _details(row: Row) -> dict[str, Any]:
    """What the page shows of a row's runs; pictures and settings of the first."""
    first = row.runs[0]
    runs = [
        {
            "name": run.name,
            "seed": run.seed,
            "commit": run.identity.get("commit") or "unknown",
            "device": run.identity.get("device") or "unknown",
            "minutes": sum(record.get("wall_time") or 0 for record in run.records) / 60,
            "commands": list(dict.fromkeys(record["command"] for record in run.records if record.get("command"))),
        }
        for run in row.runs
    ]
    config = first.identity.get("config")
    settings = yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False) if config else ""
    return {"runs": runs, "settings": settings, "pictures": list(_pictures(first.folder))}


def _pictures(folder: Path | None) -> Iterator[tuple[str, str]]:
    """Name and data URI of the pictures of the test, else of the last validation."""
    for kind in PICTURES if folder is not None else ():
        assert folder is not None
        found = sorted((folder / kind).glob("*.png"))
        tests = [path for path in found if path.name.startswith("test")]
        for path in tests or found[-1:]:
            data = base64.b64encode(path.read_bytes()).decode()
            yield f"{kind.replace('_', ' ')}, {path.stem.replace('_', ' ')}", f"data:image/png;base64,{data}"
