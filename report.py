"""Compare runs: ``python report.py RUNS... --output report.html``; see docs/report.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reports.documents import update
from reports.page import html
from reports.picture import front, svg
from reports.records import FILE
from reports.report import make_report
from reports.tables import as_json, comma_separated, markdown
from robust.errors import SettingError, require

FORMATS = {".html": html, ".md": markdown, ".csv": comma_separated, ".json": as_json, ".svg": svg}


def main(arguments: list[str] | None = None) -> int:
    """Write a report, or update the tables of the documentation; 2 with one line on stderr for a wrong setting."""
    given = _parser().parse_args(arguments)
    try:
        if given.update_docs:
            fits = not (given.runs or given.output or given.baseline or given.front)
            require(fits, "update-docs", True, "it reads and writes files of its own; give it alone")
            for page in update(Path(__file__).parent):
                print(f"Updated {page}")
            return 0
        require(bool(given.runs), "runs", [], "give log folders of runs or files like results.json")
        for output in given.output:
            require(not output.is_dir(), "output", str(output), "it is a folder; give a file")
            require(output.suffix in FORMATS, "output", str(output), f"give a file that ends in {', '.join(FORMATS)}")
            require(output.parent.is_dir(), "output", str(output), "its folder does not exist; create it first")
            record = output.name == FILE or any(output.resolve() == run.resolve() for run in given.runs)
            require(not record, "output", str(output), "this is the record of a run; give another file")
        svgs = [output for output in given.output if output.suffix == ".svg"]
        require(given.front is None or bool(svgs), "front", given.front, "give --output a file that ends in .svg, too")
        report = make_report(given.runs, given.stage, given.baseline)
        for output in given.output:
            drawn = given.front is not None and output in svgs
            text = front(report, given.front) if drawn else FORMATS[output.suffix](report)
            output.write_text(text, encoding="utf-8")
            print(f"Written to {output}")
    except SettingError as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        return 2
    if not given.output:
        print(markdown(report), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="report.py", description="Compare runs. Example: report.py logs -o report.html"
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, help="log folders of runs, searched at every depth, or JSON files"
    )
    help_text = (
        "files to write; the ending gives the format: HTML, Markdown, CSV, JSON or SVG; default: Markdown to stdout"
    )
    parser.add_argument("-o", "--output", nargs="+", type=Path, default=[], help=help_text)
    parser.add_argument("--stage", choices=["test", "val"], default="test", help="stage of the metrics; default: test")
    parser.add_argument(
        "--baseline", help="row to compare with: its label, or a part of it or of a run's name; default: the first row"
    )
    parser.add_argument(
        "--front",
        metavar="METRIC",
        help="draw clean accuracy against this one, with the Pareto front, as the SVG; as certified_accuracy/linf_0.1",
    )
    parser.add_argument(
        "--update-docs", action="store_true", help="write the tables of results/ into the documentation"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
