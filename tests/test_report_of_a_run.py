"""The report of a run by the command line: curves, pictures, outcomes of single images and margins."""

import json

import pytest

import report
from reports.comparison import correct
from tests.command_line import FEW_BATCHES, TINY, run
from tests.testers import run as run_here
from tests.testers import two_processes

CALLBACKS = [
    "--trainer.callbacks=[{class_path: CertifiedEvaluation}, {class_path: BudgetImages, init_args: {count: 2}}]",
    "--trainer.callbacks+={class_path: AdversarialEvaluation, init_args: {attacks: {pgd: {attack: "
    "{class_path: robust.attacks.PGD, init_args: {steps: 2}}, norm: linf, epsilon: 0.05}}}}",
    "--test_after_fit=true",
    "--trainer.limit_test_batches=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("fit", tmp_path_factory.mktemp("run"), *FEW_BATCHES, *CALLBACKS)


def test_the_record_has_the_outcome_of_each_image(folder):
    test = json.loads((folder / "results.json").read_text())["test"]
    attacked = next(name for name in test["outcomes"] if name.startswith("test/accuracy/pgd"))
    verdicts = correct(test["outcomes"][attacked])
    assert len(verdicts) == test["outcomes"][attacked]["count"] == test["metrics"]["test/attacked_samples"] == 200
    assert verdicts.mean() == pytest.approx(test["metrics"][attacked])


def test_the_record_has_the_margins_of_certificates(folder):
    test = json.loads((folder / "results.json").read_text())["test"]
    for name, quantiles in test["margins"].items():
        assert len(quantiles) == 51
        assert quantiles == sorted(quantiles)
        certified = test["metrics"][name]
        positive = sum(each > 0 for each in quantiles) / 51
        assert positive == pytest.approx(certified, abs=1 / 50)
    assert len(test["margins"]) == 2, "in uniform and in learned budgets"


def test_the_page_has_curves_pictures_and_margins(folder, tmp_path):
    assert report.main([str(folder), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    for part in ('id="spec-training"', '"metric": "train/loss"', 'src="data:image/png;base64,', 'id="spec-margins"'):
        assert part in page
    assert "few samples: some metrics are of 200 images" in page


@pytest.mark.slow
def test_two_processes_record_the_same_images(folder, tmp_path):
    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    settings = [*TINY, *CALLBACKS[:2], checkpoint]
    _, one = run_here("test", settings, tmp_path / "one")
    _, two = two_processes("test", settings, tmp_path / "two")
    assert len(one["outcomes"]) >= 3
    assert two["outcomes"] == one["outcomes"]
    for name, quantiles in one["margins"].items():
        assert two["margins"][name] == pytest.approx(quantiles, abs=1e-4)
