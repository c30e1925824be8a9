"""Tables of README and docs are those of results/."""

import json
import re
import shutil

import pytest
import yaml

import report
from reports.documents import outdated, update
from reports.picture import front, svg
from reports.report import make_report
from robust.errors import SettingError
from tests.result_tables import project
from tests.testers import ROOT

COLUMN = {"title": "clean", "metrics": ["test/accuracy/clean"], "show": "error %"}


def test_pages_are_up_to_date():
    pages = [page.name for page, _ in outdated(ROOT)]
    assert pages == [], "run python report.py --update-docs"


def test_each_run_is_in_a_table():
    tables = [yaml.safe_load(path.read_text()) for path in (ROOT / "results" / "tables").iterdir()]
    rows = [row for table in tables for row in table.get("rows", table.get("claims"))]
    cited = {file for row in rows for file in [*row.get("runs", []), *row.get("against", [])]}
    files = {str(path.relative_to(ROOT / "results")) for path in (ROOT / "results").rglob("*.json")}
    assert {file for file in files if not file.startswith("benchmarks/")} == cited


def test_the_picture_of_the_leaderboard_shows_its_runs():
    rows = yaml.safe_load((ROOT / "results" / "tables" / "leaderboard.yaml").read_text())["rows"]
    drawn = svg(make_report([ROOT / "results" / file for file in sorted(files_of(rows))], "test", None))
    committed = (ROOT / "docs" / "images" / "digits_leaderboard.svg").read_text()
    assert len(marks(committed)) > 100
    assert marks(committed) == marks(drawn)


def test_the_picture_of_the_certified_losses_shows_its_runs():
    rows = yaml.safe_load((ROOT / "results" / "tables" / "digits_certified_losses.yaml").read_text())["rows"]
    files = [ROOT / "results" / file for file in sorted(files_of(rows))]
    drawn = front(make_report(files, "test", None), "certified_accuracy/linf_0.1")
    committed = (ROOT / "docs" / "images" / "digits_certified_losses.svg").read_text()
    assert len(marks(committed)) > len(rows)
    assert marks(committed) == marks(drawn)


def files_of(rows):
    return [file for row in rows for file in row["runs"]]


def marks(picture):
    """The values of the marks: layout and fonts may differ between versions of the drawing library."""
    return sorted(re.findall(r'aria-label="([^"]*accuracy: [^"]*)"', picture))


def test_each_table_is_in_a_page():
    pages = "".join(page.read_text() for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    for table in (ROOT / "results" / "tables").iterdir():
        assert f"<!-- begin results {table.stem} -->" in pages
    for file in (ROOT / "results" / "benchmarks").glob("*.json"):
        assert f"<!-- begin results benchmarks/{file.stem} -->" in pages


def test_a_single_run_of_a_network_with_noise_has_the_std_over_its_passes(tmp_path):
    project(tmp_path, {"columns": [COLUMN], "rows": [{"label": "noisy", "runs": ["noisy.json"]}]})
    metrics = {"test/accuracy/clean": 0.98, "test/accuracy/clean/std": 0.004}
    (tmp_path / "results" / "noisy.json").write_text(json.dumps({"test": {"metrics": metrics, "method": "MSD"}}))
    update(tmp_path)
    assert "| noisy | 2.00 ± 0.40 |" in (tmp_path / "docs" / "page.md").read_text()


def test_the_time_is_that_of_the_trainings(tmp_path):
    columns = [{"title": "time", "field": "wall_time"}]
    project(tmp_path, {"columns": columns, "rows": [{"label": "both", "runs": ["0.json", "1.json"]}]})
    for seed, seconds in enumerate((600.0, 900.0)):
        path = tmp_path / "results" / f"{seed}.json"
        test = json.loads(path.read_text())["test"]
        path.write_text(json.dumps({"fit": test | {"metrics": {}, "wall_time": seconds}, "test": test}))
    update(tmp_path)
    assert "| both | 12 min |" in (tmp_path / "docs" / "page.md").read_text()


def test_a_training_and_the_test_of_its_best_weights_are_one_seed(tmp_path):
    """Regression: a table had eight times of five seeds."""
    columns = [{"title": "time", "field": "wall_time"}, {"title": "seeds", "field": "n"}]
    project(tmp_path, {"columns": columns, "rows": [{"label": "both", "runs": ["0.json"]}]})
    path = tmp_path / "results" / "0.json"
    test = json.loads(path.read_text())["test"]
    fit = test | {"metrics": {}, "wall_time": 600.0}
    path.write_text(json.dumps({"fit": fit, "test": test | {"checkpoint": "best"}}))
    update(tmp_path)
    assert "| both | 10 min | 1 |" in (tmp_path / "docs" / "page.md").read_text()


def test_the_time_of_a_training_is_at_least_that_of_its_steps(tmp_path):
    """Older records of a resumed training have the time of its last process."""
    columns = [{"title": "time", "field": "wall_time"}]
    project(tmp_path, {"columns": columns, "rows": [{"label": "resumed", "runs": ["0.json"]}]})
    path = tmp_path / "results" / "0.json"
    test = json.loads(path.read_text())["test"]
    fit = test | {"metrics": {}, "wall_time": 60.0, "training_cost": {"seconds": 600.0}}
    path.write_text(json.dumps({"fit": fit, "test": test}))
    update(tmp_path)
    assert "| resumed | 10 min |" in (tmp_path / "docs" / "page.md").read_text()


def test_a_benchmarks_table_is_that_of_its_rows(tmp_path):
    (tmp_path / "page.md").write_text("<!-- begin results benchmarks/mine -->\n<!-- end results -->\n")
    (tmp_path / "results" / "benchmarks").mkdir(parents=True)
    rows = [{"network": "one", "time": "1.5"}, {"network": "two", "time": ""}]
    record = {"command": "mine.py", "hardware": "a CPU", "commit": "0123456789-dirty", "rows": rows}
    (tmp_path / "results" / "benchmarks" / "mine.json").write_text(json.dumps(record))
    update(tmp_path)
    table = "| network | time |\n| --- | --- |\n| one | 1.5 |\n| two | |\n"
    assert f"{table}\n`mine.py`: a CPU, commit 0123456-dirty.\n" in (tmp_path / "page.md").read_text()


def test_runs_of_other_commits_and_devices_are_not_said_to_be_of_one(tmp_path):
    """Regression: the first run's commit, and the mean of the times of a CPU and a GPU."""
    columns = [{"title": "commit", "field": "commit"}, {"title": "time", "field": "wall_time"}]
    project(tmp_path, {"columns": columns, "rows": [{"label": "two", "runs": ["0.json", "1.json"]}]})
    path = tmp_path / "results" / "1.json"
    record = json.loads(path.read_text())
    for each in record.values():
        each |= {"commit": "b" * 40, "device": "1 x GPU", "wall_time": 660.0}
    path.write_text(json.dumps(record))
    update(tmp_path)
    assert "| two | aaaaaaa, bbbbbbb | 90 s, 11 min |" in (tmp_path / "docs" / "page.md").read_text().splitlines()


def test_a_table_is_written_between_its_markers(tmp_path):
    columns = [COLUMN, {"title": "commit", "field": "commit"}, {"title": "time", "field": "wall_time"}]
    rows = [
        {"label": "one", "runs": ["0.json"]},
        {"label": "two", "runs": ["0.json", "1.json"], "cells": {"time": "unknown"}},
        {"label": "paper", "cells": {"clean": "1.4"}},
    ]
    project(tmp_path, {"columns": columns, "rows": rows})
    assert update(tmp_path) == [tmp_path / "docs" / "page.md"]
    assert (tmp_path / "docs" / "page.md").read_text().splitlines() == [
        "Before",
        "<!-- begin results mine -->",
        "| run | clean | commit | time |",
        "| --- | --- | --- | --- |",
        "| one | 2.00 | aaaaaaa | 90 s |",
        "| two | 3.00 ± 1.41 (n 2) | aaaaaaa | unknown |",
        "| paper | 1.4 | | |",
        "<!-- end results -->",
        "After",
    ]
    assert update(tmp_path) == []


def test_a_column_with_the_number_of_runs_takes_it_out_of_the_cells(tmp_path):
    passes = "test/training_cost/forward_equivalents"
    columns = [COLUMN | {"metrics": [passes], "show": "millions", "digits": 3}, {"title": "seeds", "field": "n"}]
    project(tmp_path, {"columns": columns, "rows": [{"label": "two", "runs": ["0.json", "1.json"]}]})
    for seed, count in enumerate((2_000_000, 2_004_000)):
        record = {"metrics": {passes: count}, "method": "MSD", "seed": seed, "commit": "a" * 40}
        (tmp_path / "results" / f"{seed}.json").write_text(json.dumps({"test": record}))
    update(tmp_path)
    assert "| two | 2.002 ± 0.003 | 2 |" in (tmp_path / "docs" / "page.md").read_text()


def test_an_optional_column_is_empty_where_the_runs_have_no_such_metric(tmp_path):
    columns = [COLUMN, {"title": "union", "metrics": ["test/accuracy/union"], "optional": True}]
    project(tmp_path, {"columns": columns, "rows": [{"label": "one", "runs": ["0.json"]}]})
    update(tmp_path)
    assert "| one | 2.00 | |" in (tmp_path / "docs" / "page.md").read_text()


@pytest.mark.parametrize(
    ("column", "row", "message"),
    [
        (
            {"metrics": ["test/accuracy/union"]},
            {},
            "results mine: got 'test/accuracy/union'; .* has no such metric; give",
        ),
        (
            {"show": "percent"},
            {},
            "results mine, show: got 'percent'; give one of error %, accuracy %, millions, plain",
        ),
        ({}, {"runs": ["absent.json"]}, "runs: got '.*absent.json'; it does not exist"),
        ({}, {"cells": {"dirty": "1"}}, r"results mine, cells: got \['dirty'\]; give titles of columns"),
    ],
)
def test_a_table_that_cannot_be_made_is_an_error(tmp_path, column, row, message):
    project(tmp_path, {"columns": [COLUMN | column], "rows": [{"label": "one", "runs": ["0.json"]} | row]})
    with pytest.raises(SettingError, match=message):
        update(tmp_path)


def test_a_table_that_is_missing_or_malformed_is_an_error(tmp_path):
    project(tmp_path, {"rows": []})
    with pytest.raises(SettingError, match="results: got 'mine'; give columns and rows, or claims, in its YAML file"):
        update(tmp_path)
    shutil.rmtree(tmp_path / "results" / "tables")
    with pytest.raises(SettingError, match=r"results: got 'mine'; there is no mine.yaml in results/tables"):
        update(tmp_path)


@pytest.mark.thorough
def test_the_command_updates_nothing_here(capsys):
    assert report.main(["--update-docs"]) == 0
    assert capsys.readouterr().out == ""


def test_a_table_of_ratios_is_that_of_a_benchmark(tmp_path):
    (tmp_path / "page.md").write_text("<!-- begin results benchmarks/steps -->\n<!-- end results -->\n")
    with pytest.raises(SettingError, match=r"benchmarks/steps'; there is no steps.json; run benchmarks/run.py steps"):
        update(tmp_path)
    record = {"unit": "a step", "columns": {"small": {"own": 2.0, "new": 1.25}, "large": {"own": 3.456}}, "rounds": 3}
    record |= {"hardware": "a CPU, 1 thread", "commit": "a" * 40, "versions": {"torch": "2"}}
    (tmp_path / "results" / "benchmarks").mkdir(parents=True)
    (tmp_path / "results" / "benchmarks" / "steps.json").write_text(json.dumps(record))
    update(tmp_path)
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert lines[1] == "| time over that of a step | small | large |"
    assert lines[3:5] == ["| own | 2 | 3.46 |", "| new | 1.25 | |"]
    assert lines[6] == "a CPU, 1 thread, 3 rounds, commit aaaaaaa; torch 2."
    del record["rounds"]
    (tmp_path / "results" / "benchmarks" / "steps.json").write_text(json.dumps(record | {"quantity": "memory"}))
    update(tmp_path)
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert lines[1] == "| memory over that of a step | small | large |"
    assert lines[6] == "a CPU, 1 thread, commit aaaaaaa; torch 2."
