"""Tables with a row for each network of ``zoo.py``: printed, and written as the documentation reads them."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.zoo import ZOO, Case
from callbacks.machine import cpu_name, git_commit, installed_versions


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser of the arguments that all tables take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of networks; all by default")
    parser.add_argument("--out", type=Path, help="write results as JSON to this file")
    return parser


def write_table(
    command: str, titles: Sequence[str], cells: Callable[[Case], list[str]], only: list[str], out: Path | None
) -> None:
    """Measure on one thread, print a Markdown table, and write it as JSON.

    Args:
        command: command that repeats the measurement.
        titles: titles of the columns, the network's first.
        cells: function from a network to the cells of its row, without its name.
        only: parts of names of networks; all if empty.
        out: file of the JSON; none if None.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    git_commit()  # cached, so that the file names the code with which the measurement began
    rows: list[dict[str, str]] = []
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for case in ZOO:
        if not only or any(part in case.name for part in only):
            rows.append(dict(zip(titles, [case.name, *cells(case)], strict=True)))
            print(f"| {' | '.join(rows[-1].values())} |", flush=True)
    _write(command, rows, out)


def write_rows(command: str, rows: Sequence[dict[str, str]], out: Path | None) -> None:
    """Print rows as a Markdown table, and write them as JSON; arguments as in :func:`write_table`."""
    print(f"| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(row.values())} |")
    _write(command, rows, out)


def _write(command: str, rows: Sequence[dict[str, str]], out: Path | None) -> None:
    about = {"command": command, "commit": git_commit(), "hardware": f"{cpu_name()}, 1 thread"}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(about | {"versions": installed_versions(), "rows": rows}, indent=1) + "\n")
