"""Tables of claims are decided by their runs."""

import json
import statistics

import pytest
import yaml
from scipy import stats

from reports.documents import update
from robust.errors import SettingError
from tests.recorded_runs import outcomes
from tests.result_tables import project

FILES = ["a.json", "b.json", "c.json"]
CLAIM = {
    "claim": "more",
    "paper": "1 against 2",
    "title": "clean",
    "metric": "test/accuracy/clean",
    "expected": "higher",
}


def claims(folder, values, **more):
    """A project with a claim about records of these accuracies, and the decision in its page."""
    project(
        folder,
        {"claims": [CLAIM | {side: [f"{side}_{n}.json" for n in range(len(values[side]))] for side in values} | more]},
    )
    for side, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            record = {"metrics": {"test/accuracy/clean": accuracy}, "method": "MSD", "seed": seed}
            (folder / "results" / f"{side}_{seed}.json").write_text(json.dumps({"test": record}))
    update(folder)
    return (folder / "docs" / "page.md").read_text()


@pytest.mark.parametrize(
    ("ours", "against", "expected", "decision"),
    [
        ([0.90, 0.91, 0.92], [0.50, 0.51, 0.49], "higher", "yes (p = "),
        ([0.90, 0.91, 0.92], [0.50, 0.51, 0.49], "lower", "no: the opposite (p = "),
        ([0.90, 0.91, 0.92], [0.50, 0.51, 0.49], "equal", "no: they differ (p = "),
        ([0.90, 0.50, 0.70], [0.60, 0.71, 0.69], "higher", "not decided: within chance (p = "),
        ([0.90, 0.50, 0.70], [0.60, 0.71, 0.69], "equal", "no difference found (p = "),
        ([0.90], [0.50], "higher", "not decided: fewer than 3 seeds"),
    ],
)
def test_a_claim_is_decided_by_its_runs(tmp_path, ours, against, expected, decision):
    page = claims(tmp_path, {"runs": ours, "against": against}, expected=expected)
    assert decision in page
    count = f" ± {100 * statistics.stdev(ours):.1f} (n 3)" if len(ours) > 1 else ""
    assert f"| more | 1 against 2 | clean | {100 * statistics.fmean(ours):.1f}{count} |" in page


def test_two_networks_decide_nothing_of_their_methods(tmp_path):
    claims(tmp_path, {"runs": [0.9], "against": [0.1]})
    for side, value in (("runs", 1), ("against", 0)):
        path = tmp_path / "results" / f"{side}_0.json"
        record = json.loads(path.read_text())
        record["test"]["outcomes"] = {"test/accuracy/clean": outcomes([value] * 20)}
        path.write_text(json.dumps(record))
    assert update(tmp_path) == []
    assert "not decided: fewer than 3 seeds" in (tmp_path / "docs" / "page.md").read_text()


def test_a_claim_may_compare_two_metrics(tmp_path):
    other = "test/accuracy/union"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("<!-- begin results mine -->\n<!-- end results -->\n")
    (tmp_path / "results" / "tables").mkdir(parents=True)
    claim = CLAIM | {"runs": ["0.json"], "against": ["0.json"], "metric_against": other}
    (tmp_path / "results" / "tables" / "mine.yaml").write_text(yaml.safe_dump({"claims": [claim]}))
    metrics = {"test/accuracy/clean": 0.9, other: 0.4}
    (tmp_path / "results" / "0.json").write_text(json.dumps({"test": {"metrics": metrics, "method": "MSD"}}))
    update(tmp_path)
    assert "| clean | 90.0 | 40.0 | not decided: fewer than 3 seeds |" in (tmp_path / "docs" / "page.md").read_text()


def test_seeds_are_the_runs_that_have_the_metric(tmp_path):
    """A training and its test in two folders are two runs, of which one has the test's metrics."""
    page = claims(tmp_path, {"runs": [0.9, 0.91, 0.92], "against": [0.4, 0.41, 0.42]})
    assert "3 seeds)" in page
    for seed, file in enumerate(sorted((tmp_path / "results").glob("*.json"))):
        test = json.loads(file.read_text())["test"] | {"config": {"ckpt_path": f"copy/{seed}/checkpoints/last.ckpt"}}
        trained = {"metrics": {"train/loss": 0.1}, "method": "MSD", "config": {"trainer": {"default_root_dir": "logs"}}}
        file.write_text(json.dumps({"fit": trained, "test": test}))
    update(tmp_path)
    assert "3 seeds)" in (tmp_path / "docs" / "page.md").read_text()


def test_two_metrics_of_the_same_networks_are_compared_in_pairs(tmp_path):
    """Their differences are 0.1 to within a tenth of that, whereas the networks differ by five times as much."""
    project(tmp_path, {"claims": [CLAIM | {"runs": FILES, "against": FILES, "metric_against": "test/accuracy/union"}]})
    for file, clean, union in zip(FILES, (0.9, 0.4, 0.6), (0.8, 0.31, 0.49), strict=True):
        metrics = {"test/accuracy/clean": clean, "test/accuracy/union": union}
        (tmp_path / "results" / file).write_text(json.dumps({"test": {"metrics": metrics, "method": "MSD"}}))
    update(tmp_path)
    p = stats.ttest_rel((0.9, 0.4, 0.6), (0.8, 0.31, 0.49)).pvalue
    assert f"yes (p = {p:.2g}, 3 seeds)" in (tmp_path / "docs" / "page.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"expected": "more"}, "results mine, expected: got 'more'; give one of"),
        (
            {"metric": "test/accuracy/union"},
            "results mine, metric: got 'test/accuracy/union'; .* has no such metric",
        ),
    ],
)
def test_a_claim_that_cannot_be_decided_is_an_error(tmp_path, more, message):
    with pytest.raises(SettingError, match=message):
        claims(tmp_path, {"runs": [0.9], "against": [0.5]}, **more)


def test_two_metrics_of_the_same_runs_that_no_run_has_both_of_are_an_error(tmp_path):
    project(tmp_path, {"claims": [CLAIM | {"runs": FILES, "against": FILES, "metric_against": "test/accuracy/union"}]})
    for file, metric in zip(FILES, ("clean", "union", "clean"), strict=True):
        record = {"test": {"metrics": {f"test/accuracy/{metric}": 0.9}, "method": "MSD"}}
        (tmp_path / "results" / file).write_text(json.dumps(record))
    with pytest.raises(SettingError, match="results mine, metric_against: got 'test/accuracy/union'; no run has"):
        update(tmp_path)
