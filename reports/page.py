"""A report as one HTML file that needs no network."""

from __future__ import annotations

import base64
import re
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
from reports.rows import Row, is_detail
from reports.tables import cell
from robust.metric_names.registry import ARROWS, MetricInfo

FOLDER = Path(__file__).parent / "template"
PICTURES = ("budgets", "adversarial_examples", "boundaries")  # folders that the callbacks of pictures write
MOST_COLUMNS = 8  # columns that are shown at first; check boxes show the others


class Column(NamedTuple):
    """A metric as the page shows it."""

    name: str
    info: MetricInfo
    arrow: str
    shown: bool


class Cell(NamedTuple):
    """A value as text and for sorting; its difference from the baseline, the statement on it, better or worse."""

    text: str
    order: float | None
    difference: str = ""
    sentence: str = ""
    kind: str = ""


def html(report: Report) -> str:
    """The page."""
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    # a long name may break after its parts
    environment.filters["breakable"] = lambda name: Markup("<wbr>").join(re.split("(?<=[/_])", name))
    shown = set(_first_columns(report))
    columns = [Column(report.short(name), info, ARROWS[info.direction], name in shown) for name, info in report.columns]
    text = environment.get_template("page.html").render(
        report=report,
        columns=columns,
        cells=[_cells(report, index) for index in range(len(report.rows))],
        details=[_details(row) for row in report.rows],
        charts=_charts(report),
        style=_part("page.css"),
        script=_part("page.js"),
        vega=_vega(),
    )
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _first_columns(report: Report) -> list[str]:
    """Names of the metrics that are shown at first: those that at least half of the rows have."""
    names = [name for name, _ in report.columns]
    counts = {name: sum(name in row.metrics for row in report.rows) for name in names}
    common = [name for name in names if 2 * counts[name] >= len(report.rows) and not is_detail(name)]
    return (common or names)[:MOST_COLUMNS]


def _vega() -> Markup:
    """The JavaScript of the charts, 0.9 MB."""
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the default
    return Markup(bundle.replace("</script", "<\\/script"))


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
    return [_cell(report, index, name, info) for name, info in report.columns]


def _cell(report: Report, index: int, name: str, info: MetricInfo) -> Cell:
    value, difference = report.rows[index].value(name), report.differences[name].get(index)
    text, order = cell(value, info.unit), None if value is None else value.mean
    if difference is None:
        return Cell(text, order)
    size = f"{100 * difference.value:+.2f} points" if info.unit == "fraction" else f"{difference.value:+.3g}"
    mark = {True: "exceeds chance", False: "within chance", None: "not tested"}[difference.exceeds_chance]
    better = (difference.value > 0) == (info.direction == "higher is better")
    kind = ("better" if better else "worse") if difference.exceeds_chance else ""
    return Cell(text, order, f"{size}, {mark}".replace("-", "\N{MINUS SIGN}"), difference.sentence, kind)


def _details(row: Row) -> dict[str, Any]:
    """The details of a row: all its runs, and the pictures and settings of the first run."""
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
    """Name and data URI of each picture of the test, or else of the last validation."""
    for kind in PICTURES if folder is not None else ():
        assert folder is not None
        paths = sorted((folder / kind).glob("*.png"))
        tests = [path for path in paths if path.name.startswith("test")]
        for path in tests or paths[-1:]:
            data = base64.b64encode(path.read_bytes()).decode()
            yield f"{kind.replace('_', ' ')}, {path.stem.replace('_', ' ')}", f"data:image/png;base64,{data}"
