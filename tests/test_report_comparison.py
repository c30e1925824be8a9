"""Differences of a report's rows, and their tests against chance."""

import numpy as np
import pytest

from reports import settings
from reports.comparison import between
from reports.rows import Row
from reports.runs import read_runs
from tests.recorded_runs import ATTACKED, CERTIFIED, CLEAN, outcomes, write_run
from tests.test_report import rows


def test_seeds_without_variance_are_not_tested_and_the_report_says_why(tmp_path):
    """Regression: it asked for three seeds, which there were."""
    pair = []
    for method, value in (("TRADES", 0.0), ("MSD", 0.5)):
        for seed in range(3):
            write_run(tmp_path / method / str(seed), method, seed, {CERTIFIED: value})
        pair.append(Row(read_runs([tmp_path / method])))
    difference = between(pair[1], CERTIFIED, pair[0], CERTIFIED)
    assert (difference.value, difference.p) == (0.5, None)
    assert difference.sentence == "not tested: the seeds of each row have no variance, which a t-test needs"


def test_three_seeds_are_compared_by_welchs_test(tmp_path):
    for seed, (ours, theirs) in enumerate(zip((0.8, 0.81, 0.82), (0.5, 0.52, 0.51), strict=True)):
        write_run(tmp_path / f"a{seed}", "TRADES", seed, {CLEAN: theirs, ATTACKED: theirs})
        write_run(tmp_path / f"b{seed}", "MSD", seed, {CLEAN: ours, ATTACKED: 0.5})
    metrics = rows(tmp_path)["MSD"]["metrics"]
    assert metrics[CLEAN]["difference"] == pytest.approx(0.3)
    assert metrics[CLEAN]["test"].startswith("Welch")
    assert metrics[CLEAN]["p"] == pytest.approx(3.7e-6, rel=0.2)  # t = 36.7 on 4 degrees of freedom
    assert metrics[ATTACKED]["p"] > 0.05


@pytest.mark.parametrize(("images", "p"), [("all", 2 * 2**-8), ("others", None)])
def test_two_networks_are_compared_on_the_same_images(tmp_path, images, p):
    first, second = [1] * 8 + [1, 0], [0] * 8 + [1, 0]
    write_run(tmp_path / "a", "TRADES", metrics={CLEAN: 0.9}, outcomes={CLEAN: outcomes(first)})
    write_run(tmp_path / "b", "MSD", metrics={CLEAN: 0.1}, outcomes={CLEAN: outcomes(second, images)})
    recorded = rows(tmp_path)["MSD"]["metrics"][CLEAN]
    assert recorded["p"] == (None if p is None else pytest.approx(p))
    assert recorded["test"].startswith("McNemar" if p else "")


def test_equal_numbers_of_images_of_other_data_are_not_the_same_images(tmp_path):
    """Regression: the recorded hash is of the images' indices, equal in all data sets of one size."""
    for method, right, data in (("TRADES", [1] * 10, {}), ("MSD", [0] * 9 + [1], {"padding": 2})):
        write_run(tmp_path / method, method, data=data, outcomes={CLEAN: outcomes(right)})
    assert rows(tmp_path, "--baseline", "TRADES")["MSD"]["metrics"][CLEAN]["p"] is None
    names = (("datamodules.Digits", ""), ("my_data.Digits", "a"), ("my_data.Digits", "b"))  # class and hash of its file
    records = [
        {"config": {"data": {"class_path": path}}, "own_code": {path: code} if code else {}} for path, code in names
    ]
    assert len({settings.data(record) for record in records}) == 3, "nor are those of modules of the user"


@pytest.mark.parametrize("absent", [[], [0], [1, 2]])
def test_two_metrics_of_the_same_networks_are_paired_by_network(tmp_path, absent):
    """Regression: values that a run lacks moved the others to other networks, or the test crashed."""
    values = [(0.1, 0.21), (0.3, 0.39), (0.5, 0.6), (0.7, 0.81), (0.9, 0.99)]
    folders = []
    for seed, (one, other) in enumerate(values):
        second = None if seed in absent else other
        folders.append(write_run(tmp_path / f"seed{seed}", seed=seed, metrics={CLEAN: one, CERTIFIED: second}))
    row = Row(read_runs(folders))
    difference = between(row, CERTIFIED, row, CLEAN)
    assert difference.value == pytest.approx(0.1, abs=0.01)
    assert difference.p < 0.01


def test_p_values_are_adjusted_for_the_number_of_rows(tmp_path):
    write_run(tmp_path / "a", "TRADES", outcomes={CLEAN: outcomes([1] * 10)})
    for index, method in enumerate(("MSD", "MNGAC")):
        write_run(tmp_path / f"b{index}", method, outcomes={CLEAN: outcomes([0] * 8 + [1] * 2)})
    recorded = rows(tmp_path, "--baseline", "TRADES")
    assert [recorded[method]["metrics"][CLEAN]["p"] for method in ("MSD", "MNGAC")] == pytest.approx([2**-6] * 2)


def test_means_of_two_seeds_are_not_tested_by_the_first_networks(tmp_path):
    """Regression: a row was better by its means, and exceeded chance by a test of its first network alone."""
    for method, accuracies in (("TRADES", (0.6, 0.3)), ("MSD", (0.4, 0.9))):
        for seed, accuracy in enumerate(accuracies):
            judged = {CLEAN: outcomes([1] * int(100 * accuracy) + [0] * int(100 - 100 * accuracy))}
            write_run(tmp_path / method / str(seed), method, seed, {CLEAN: accuracy}, outcomes=judged)
    pair = [Row(read_runs([tmp_path / method])) for method in ("TRADES", "MSD")]
    difference = between(pair[1], CLEAN, pair[0], CLEAN)
    assert (difference.value, difference.p) == (pytest.approx(0.2), None)


def test_equal_differences_are_no_evidence_however_they_are_rounded(tmp_path):
    """Regression: rounding of float32 passed for a small variance, and p was 4e-12."""
    pairs = [(286, 289), (281, 284), (290, 293)]
    for seed, (one, other) in enumerate(pairs):
        values = {CLEAN: float(np.float32(other / 299)), CERTIFIED: float(np.float32(one / 299))}
        write_run(tmp_path / str(seed), seed=seed, metrics=values)
    row = Row(read_runs([tmp_path]))
    difference = between(row, CERTIFIED, row, CLEAN)
    assert (difference.value, difference.p) == (pytest.approx(-3 / 299), None)
