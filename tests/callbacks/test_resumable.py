"""A test that is stopped in the middle and resumed measures what an uninterrupted one does, and nothing twice."""

import copy
import json

import pytest
import torch

from callbacks import (
    AdversarialEvaluation,
    AttackCase,
    CertifiedEvaluation,
    GradientMaskingChecks,
    ResumableTest,
    RobustnessScore,
    WeightedMinimaxEvaluation,
)
from datamodules import Digits
from robust.attacks import APGD, PGD, LinearizedBoundary
from robust.errors import SettingError
from tests.callbacks.trained import stored, trainer_with


class StoppedError(Exception):
    """Ends a test."""


class Counting:
    """An attack that counts its calls, and ends the test at one of them."""

    calls, last = 0, 10**9

    def __init__(self, attack):
        self.attack = attack

    def __call__(self, *arguments):
        Counting.calls += 1
        if Counting.calls == Counting.last:
            raise StoppedError
        return self.attack(*arguments)


def evaluations():
    return [
        CertifiedEvaluation(methods=["ibp", "crown-ibp"], norm="linf", epsilons=[0.02]),
        AdversarialEvaluation(
            {"pgd": AttackCase(Counting(PGD(3))), "apgd": AttackCase(Counting(APGD(3)))},
            balls={"linf": 0.05, "l2": 0.5},
        ),
        WeightedMinimaxEvaluation(2, 0.03, 0.05, restarts=2, alphas=(1.0,)),
        RobustnessScore({"bg": LinearizedBoundary()}),
        GradientMaskingChecks({"l2": 0.5}, steps=2, restarts=2, tolerance=0.9),
    ]


def measure(module, folder, last=10**9, images=20, resumes=True):
    """Metrics and outcomes of a test, and the calls of the attacks; it stops at the attack number ``last``."""
    Counting.calls, Counting.last = 0, last
    callbacks = evaluations()
    resumable = [ResumableTest(str(folder))] if resumes else []
    trainer = trainer_with(*resumable, *callbacks, default_root_dir=folder)
    data = Digits(eval_batch_size=10, test_images=images)
    metrics = trainer.test(copy.deepcopy(module), data, verbose=False)[0]
    recorded = [(each.recorded.outcomes, each.recorded.margins) for each in callbacks]
    return json.dumps([metrics, recorded], sort_keys=True), Counting.calls


def test_a_stopped_test_resumes_to_the_same_results(trained, tmp_path):
    whole, calls = measure(trained, tmp_path / "whole", resumes=False)
    assert calls == 2 * 2 * 2  # batches, attacks, balls
    with pytest.raises(StoppedError):
        measure(trained, tmp_path / "state", last=7)
    assert measure(trained, tmp_path / "state") == (whole, 2)
    assert measure(trained, tmp_path / "state") == (whole, 0)


def test_a_test_continues_from_the_files_of_two_processes(trained, tmp_path):
    expected, _ = measure(trained, tmp_path)
    for file in tmp_path.glob("**/process-0.pt"):
        state = torch.load(file, weights_only=True)
        for process in range(2):
            rows = {name: column[process::2].clone() for name, column in state["rows"].items()}
            torch.save(state | {"rows": rows}, file.with_name(f"process-{process}.pt"))
    assert measure(trained, tmp_path) == (expected, 0)


def test_a_state_of_another_test_is_refused(trained, tmp_path):
    measure(trained, tmp_path / "state")
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.classifier[0].weight.add_(0.01)
    with pytest.raises(SettingError, match=r"^ResumableTest.folder: got .*; it holds results of other weights: give"):
        measure(other, tmp_path / "state")

    smooth = copy.deepcopy(trained)
    smooth.classifier.append(torch.nn.Softplus())  # which has no weights
    with pytest.raises(SettingError, match=r"^ResumableTest.folder: got .*; it holds results of other network: give"):
        measure(smooth, tmp_path / "state")

    larger = copy.deepcopy(trained)
    larger.epsilon *= 2  # the radius of the method's own threat models
    with pytest.raises(SettingError, match=r"^ResumableTest.folder: got .*; it holds results of other method: give"):
        measure(larger, tmp_path / "state")

    class Brighter(Digits):
        def load(self, split):
            images = super().load(split)
            images.images.add_(1)
            return images

    brighter = Brighter(eval_batch_size=10, test_images=20)
    trainer = trainer_with(ResumableTest(str(tmp_path / "state")), *evaluations(), default_root_dir=tmp_path)
    with pytest.raises(SettingError, match=r"^ResumableTest.folder: got .*; it has results of other images; give"):
        trainer.test(trained, brighter, verbose=False)
    weaker = AdversarialEvaluation({"pgd": AttackCase(Counting(PGD(2)))}, balls={"linf": 0.05})
    with pytest.raises(SettingError, match=r"^ResumableTest.folder: got .*; it holds results of other settings: give"):
        trainer_with(ResumableTest(str(tmp_path / "state")), weaker, default_root_dir=tmp_path).test(
            trained, Digits(eval_batch_size=10, test_images=20), verbose=False
        )


def test_several_are_refused(tmp_path):
    twice = [ResumableTest(str(tmp_path / name)) for name in "ab"]
    with pytest.raises(SettingError, match=r"^trainer.callbacks: got '2 x ResumableTest'; give one"):
        trainer_with(*twice, limit_test_batches=1).test(stored(), Digits())


def test_the_ramp_of_a_training_changes_no_result(trained, tmp_path):
    """Regression: a test behind a training that ended inside its ramp was not continued from the checkpoint."""
    expected, _ = measure(trained, tmp_path)
    module = copy.deepcopy(trained)
    module.ramp = 0.5
    assert measure(module, tmp_path) == (expected, 0)
