"""Records that were broken by hand end a report with one line that names the file and the field."""

import json

import pytest

import report
from reports.runs import read_runs
from tests.recorded_runs import CLEAN, write_run

PGD = {"class_path": "callbacks.AdversarialEvaluation", "init_args": {"attacks": {"pgd": "PGD"}}}
FINITE = "give a finite number, or null, or leave it out"
ATTACKS = "config.trainer.callbacks.AdversarialEvaluation.attacks"
MAPPING = "give a mapping, or null, or leave it out"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"config": "mine.yaml"}, f"config: got 'mine.yaml'; {MAPPING}"),
        ({"config": {"trainer": "cpu"}}, f"config.trainer: got 'cpu'; {MAPPING}"),
        (
            {"config": {"trainer": {"callbacks": [PGD]}}},
            "config.trainer.callbacks.AdversarialEvaluation.attacks.pgd: got",
        ),
        ({"metrics": {CLEAN: "0.9"}}, f"metrics.{CLEAN}: got '0.9'; {FINITE}"),
        ({"metrics": {CLEAN: 95.0}}, f"metrics.{CLEAN}: got 95.0; it is a fraction; give a number in [0, 1]"),
        ({"metrics": {"own": 10**400}}, "metrics.own: got 1000"),
        ({"checkpoint": 5}, "checkpoint: got 5; give a text, or null, or leave it out"),
        ({"config": {"trainer": {"callbacks": 5}}}, "config.trainer.callbacks: got 5; give a list, or null"),
        ({"config": {"model": {"init_args": [1]}}}, f"config.model.init_args: got [1]; {MAPPING}"),
        ({"metrics": {CLEAN: [0.9]}}, f"metrics.{CLEAN}: got [0.9]; {FINITE}"),
        ({"metrics": {CLEAN: float("nan")}}, f"metrics.{CLEAN}: got nan; {FINITE}"),
        ({"wall_time": "a minute"}, f"wall_time: got 'a minute'; {FINITE}"),
        ({"samples": 5000}, f"samples: got 5000; {MAPPING}"),
        ({"samples": {"test": "all"}}, "samples.test: got 'all'; give a number above 0"),
        ({"samples": {"test": None}}, "samples.test: got None; give a number above 0"),
        ({"training_cost": {"seconds": "60"}}, f"training_cost.seconds: got '60'; {FINITE}"),
        ({"skipped": {"RobustnessScore": None}}, "skipped.RobustnessScore: got None; give a text"),
    ],
)
def test_a_broken_record_is_one_line_with_file_and_field(tmp_path, capsys, record, message):
    file = write_run(tmp_path / "a") / "results.json"
    records = json.loads(file.read_text())
    file.write_text(json.dumps(records | {"test": records["test"] | record}))
    assert report.main([str(tmp_path), "--output", str(tmp_path / "report.html"), str(tmp_path / "report.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"report.py: error: {file}, test, {message}")
    assert error.count("\n") == 1


def test_a_record_that_is_too_deep_is_one_line(tmp_path, capsys):
    file = write_run(tmp_path / "a") / "results.json"
    file.write_text("[" * 100_000)
    assert report.main([str(tmp_path), "--output", str(tmp_path / "report.json")]) == 2
    assert capsys.readouterr().err.startswith(f"report.py: error: runs: got '{file}'; it is not valid JSON (")


@pytest.mark.parametrize("path", ["zoo:digits_trades", "https://example.org/last.ckpt"])
def test_a_test_of_a_network_from_elsewhere_is_a_run_of_its_own(path, tmp_path, monkeypatch):
    """Regression: the record in the folder where report.py was called became its training."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(write_run(tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    (tmp_path / "here" / "results.json").write_text(json.dumps({"test": record | {"checkpoint": path}}))
    (run,) = read_runs([tmp_path / "here"])
    assert run.training is None
    assert run.checkpoint == path
