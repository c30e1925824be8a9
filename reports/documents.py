"""The tables of README and docs, generated from the measured runs in ``results/``.

The table between ``<!-- begin results NAME -->`` and ``<!-- end results -->`` on a page is that of
``results/tables/NAME.yaml``, which has ``columns`` and ``rows``. For ``benchmarks/NAME`` it has the ratios or rows that
a benchmark has written.

- A column has a ``title``, and either ``metrics`` or ``field``. ``metrics`` is a list of names (``A or B`` is the first
  that the run has), with ``show`` (``error %``, ``accuracy %``, ``millions`` or ``plain``) and ``digits``. ``field`` is
  a key of the runs' last records, such as ``commit``, of which each value is shown once; ``n``, the number of runs; or
  ``wall_time`` of the training, the mean over runs on one device, else the time of each run. If the runs lack the
  metrics of an ``optional`` column, its cell is empty. A mean over several runs is followed by their number, unless
  there is a column with the field ``n``.
- A row has a ``label`` and ``runs``, files in ``results/`` that differ only in their seeds; there are none for numbers
  from elsewhere. ``cells`` are texts by the title of a column, which replace those of the runs.

A file with ``claims`` instead is a table of claims (:mod:`reports.claims`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from reports.claims import claim_lines
from reports.rows import Row, Value
from reports.runs import Run, read_runs
from robust.errors import SettingError, require

MARKED = re.compile(r"(<!-- begin results (\S+) -->\n).*?(<!-- end results -->)", re.DOTALL)
SHOWN = ("error %", "accuracy %", "millions", "plain")


def update(root: Path) -> list[Path]:
    """Write the tables into README and docs below ``root``, and return the pages that changed.

    Raises:
        SettingError: if a table, or a run that it names, is missing or malformed.
    """
    changed = list(outdated(root))
    for page, text in changed:
        page.write_text(text, encoding="utf-8")
    return [page for page, _ in changed]


def outdated(root: Path) -> Iterator[tuple[Path, str]]:
    """Pages that differ from ``results/``, with the text that they should have.

    Raises:
        SettingError: if a table, or a run that it names, is missing or malformed.
    """
    for page in sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")]):
        text = page.read_text(encoding="utf-8")
        new = MARKED.sub(lambda match: f"{match[1]}{table(root / 'results', match[2])}\n{match[3]}", text)
        if new != text:
            yield page, new


def table(results: Path, name: str) -> str:
    """A table in Markdown.

    Raises:
        SettingError: if the table, or a run that it names, is missing or malformed.
    """
    if name.startswith("benchmarks/"):
        return _benchmark(results, name)
    file = results / "tables" / f"{name}.yaml"
    require(file.is_file(), "results", name, f"there is no {file.name} in results/tables; name a table that is there")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if isinstance(content, dict) and content.keys() == {"claims"}:
        return _markdown(claim_lines(results, name, content["claims"], _number))
    complete = isinstance(content, dict) and content.keys() == {"columns", "rows"}
    require(complete, "results", name, "give columns and rows, or claims, in its YAML file")
    columns = content["columns"]
    counted = any(column.get("field") == "n" for column in columns)
    lines = [["run", *(column["title"] for column in columns)], ["---"] * (len(columns) + 1)]
    for given in content["rows"]:
        runs = read_runs(results / each for each in given.get("runs") or [])
        texts = given.get("cells") or {}
        unknown = texts.keys() - {column["title"] for column in columns}
        require(not unknown, f"results {name}, cells", sorted(unknown), "give titles of columns")
        cells = [
            str(texts[column["title"]]) if column["title"] in texts else _cell(runs, column, name, not counted)
            for column in columns
        ]
        lines.append([given["label"], *cells])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |".replace("  ", " ") for line in lines)


def _benchmark(results: Path, name: str) -> str:
    """The table of a benchmark: its rows or ratios, and a line that says where they were measured."""
    file = results / f"{name}.json"
    require(file.is_file(), "results", name, f"there is no {file.name}; run benchmarks/run.py {file.stem}")
    record = json.loads(file.read_text(encoding="utf-8"))
    if "rows" in record:
        table = _markdown([list(record["rows"][0]), ["---"] * len(record["rows"][0]), *map(_texts, record["rows"])])
        return "\n".join([table, "", f"`{record['command']}`: {_source(record)}."])
    columns = record["columns"]
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    title = f"{record.get('quantity', 'time')} over that of {record['unit']}"
    lines = [[title, *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(f"{column[row]:.3g}" if row in column else "" for column in columns.values())] for row in rows]
    return "\n".join([_markdown(lines), "", f"{_source(record)}."])


def _source(record: dict[str, Any]) -> str:
    """The hardware, the commit and the packages of a benchmark."""
    rounds = f", {record['rounds']} rounds" if "rounds" in record else ""
    versions = ", ".join(f"{package} {version}" for package, version in record.get("versions", {}).items())
    return f"{record['hardware']}{rounds}, commit {_short(record['commit'])}" + (f"; {versions}" if versions else "")


def _short(commit: str) -> str:
    """The first seven digits of a commit, with ``-dirty`` if the checkout differed from it."""
    return commit[:7] + ("-dirty" if commit.endswith("-dirty") else "")


def _texts(row: dict[str, str]) -> list[str]:
    return list(row.values())


def _cell(runs: list[Run], column: dict[str, Any], name: str, with_count: bool) -> str:
    """The cell of the runs in a column; empty without runs."""
    if not runs:
        return ""
    trainings = list({json.dumps(run.identity, sort_keys=True): run.identity for run in runs}.values())
    if column.get("field") == "n":
        return str(len(trainings))
    if column.get("field") == "wall_time":
        seconds = [training.get("wall_time") for training in trainings]
        devices = {training.get("device") for training in trainings}
        return _time(seconds) if len(devices) == 1 else ", ".join(_time([each]) for each in seconds)
    if "field" in column:
        records = [run.evaluations[-1] if run.evaluations else run.identity for run in runs]
        texts = [str(value) for record in records if (value := record.get(column["field"])) is not None]
        return ", ".join(dict.fromkeys(_short(text) if column["field"] == "commit" else text for text in texts))
    show = column.get("show", "plain")
    require(show in SHOWN, f"results {name}, show", show, f"give one of {', '.join(SHOWN)}")
    row = Row(runs)
    values = [_first(row, names.split(" or ")) for names in column["metrics"]]
    if None in values and column.get("optional"):
        return ""
    if None in values:
        missing = column["metrics"][values.index(None)]
        raise SettingError(f"results {name}", missing, f"{runs[0].name} has no such metric; give its text in cells")
    texts = [_number(value, show, column.get("digits", 2)) for value in values if value is not None]
    count = max((value.n for value in values if value is not None and value.std is not None), default=1)
    return " / ".join(texts) + (f" (n {count})" if with_count and count > 1 else "")


def _first(row: Row, names: list[str]) -> Value | None:
    """The first of these metrics that the row has; a single run of a network with noise gets the std over passes."""
    name = next((name for name in names if row.value(name) is not None), None)
    if name is None or (value := row.value(name)) is None:
        return None
    spread = row.value(f"{name}/std")
    return replace(value, std=spread.mean) if value.n == 1 and spread is not None else value


def _time(seconds: list[float | None]) -> str:
    """Mean over the runs as text; empty if a time is not known."""
    known = [time for time in seconds if time is not None]
    if len(known) < len(seconds):
        return ""
    mean = fmean(known)
    return f"{mean:.0f} s" if mean < 600 else f"{mean / 60:.0f} min"


def _number(value: Value, show: str, digits: int) -> str:
    """Mean as text, with the std if several runs differ."""
    scale = {"error %": 100.0, "accuracy %": 100.0, "millions": 1e-6, "plain": 1.0}[show]
    mean = scale * (1 - value.mean if show == "error %" else value.mean)
    std = f" ± {scale * value.std:.{digits}f}" if value.std else ""
    return f"{mean:.{digits}f}{std}"
