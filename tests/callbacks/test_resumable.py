"""A test that is stopped in the middle and resumed measures what an uninterrupted one does, and nothing twice."""

import copy
import importlib
import json
import sys

import pytest
import torch
from torch import nn

from callbacks import (
    AccuracyCurve,
    AdversarialEvaluation,
    AttackCase,
    CertifiedEvaluation,
    GradientMaskingChecks,
    ResumableTest,
    RobustnessScore,
    SampledRobustness,
    WeightedMinimaxEvaluation,
)
from datamodules import Digits
from lightning_modules import InstanceAdaptiveTraining
from robust.attacks import APGD, PGD, LinearizedBoundary
from robust.errors import SettingError
from robust.scores import R1, UniformBall
from tests.callbacks.trained import Plain, stored, trainer_with


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


def test_draws_depend_on_the_index_of_the_attack_and_are_not_taken_for_those_of_another(tmp_path):
    """Regression: without the first attack, the second one got the verdicts by its former draws."""
    first, second = AttackCase(PGD(2)), AttackCase(PGD(1))

    def tested(attacks):
        test = AdversarialEvaluation(attacks, balls={"linf": 0.05})
        trainer = trainer_with(ResumableTest(str(tmp_path / "state")), test, default_root_dir=tmp_path)
        trainer.test(stored(), Digits(eval_batch_size=10, test_images=20), verbose=False)

    tested({"a": first, "b": second})
    with pytest.raises(SettingError, match=r"^ResumableTest.folder: got .*; it holds results of other settings: give"):
        tested({"b": second})


def test_margins_that_a_test_of_other_images_did_not_record_are_computed(tmp_path):
    """Regression: they were not a number, and with them all quantiles of the record."""

    def margins(images, state):
        test = CertifiedEvaluation(norm="linf", epsilons=[0.02], margin_samples=10, pgd_steps=0)
        trainer = trainer_with(ResumableTest(str(tmp_path / state)), test, default_root_dir=tmp_path)
        trainer.test(stored(), Digits(eval_batch_size=64, test_images=images), verbose=False)
        return next(iter(test.recorded.margins.values()))

    alone = margins(20, "alone")
    margins(None, "state")
    assert margins(20, "state") == pytest.approx(alone)


@pytest.mark.parametrize("kind", ["curve", "score"])
def test_curves_and_sampled_scores_continue_too(kind, tmp_path):
    """Regression: a stopped test started them again, and the folder was never made."""

    class Curve(AccuracyCurve):
        def _correct(self, *arguments):
            calls.append(0)
            return super()._correct(*arguments)

    class Score(SampledRobustness):
        def _measured(self, *arguments):
            calls.append(0)
            return super()._measured(*arguments)

    results, calls = [], []
    for resumes in (False, True, True):
        calls.clear()
        curve = Curve({"pgd": PGD(2)}, [0.05]) if kind == "curve" else Score(R1(UniformBall(4)), epsilons=3)
        resumable = [ResumableTest(str(tmp_path / "state"))] if resumes else []
        trainer = trainer_with(*resumable, curve, default_root_dir=tmp_path)
        metrics = trainer.test(stored(), Digits(eval_batch_size=10, test_images=20), verbose=False)[0]
        results.append((metrics, len(calls)))
    assert results == [(results[0][0], 2), (results[0][0], 2), (results[0][0], 0)]


def test_several_are_refused(tmp_path):
    twice = [ResumableTest(str(tmp_path / name)) for name in "ab"]
    with pytest.raises(SettingError, match=r"^trainer.callbacks: got '2 x ResumableTest'; give one"):
        trainer_with(*twice, limit_test_batches=1).test(stored(), Digits())


@pytest.mark.thorough
def test_the_ramp_of_a_training_changes_no_result(trained, tmp_path):
    """Regression: a test behind a training that ended inside its ramp was not continued from the checkpoint."""
    expected, _ = measure(trained, tmp_path)
    module = copy.deepcopy(trained)
    module.ramp = 0.5
    assert measure(module, tmp_path) == (expected, 0)


class Shifted(Plain):
    """A method of one's own, whose forward pass depends on a list, a tuple, and the settings of another network."""

    def __init__(self, classifier, shifts, sizes=(1.0,), turns=0):
        super().__init__(classifier, epsilon=0.1)
        self.shifts, self.sizes, self._turns = shifts, sizes, turns
        self.filter = nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        return sum(self.classifier(self.filter(x).roll(shift, 3)) for shift in self.shifts)


@pytest.mark.parametrize(
    "change", [{"shifts": [5]}, {"sizes": (2.0,)}, {"turns": 1}, {"filter": nn.MaxPool2d(3, 1, 1)}]
)
def test_a_state_of_a_method_with_other_settings_is_refused(change, trained, tmp_path):
    """Regression: only plain numbers and texts counted, and the settings of no network but the classifier."""

    def tested(filter=None, **settings):
        module = Shifted(copy.deepcopy(trained.classifier), **{"shifts": [0], **settings})
        module.filter = filter or module.filter
        attack = AdversarialEvaluation({"pgd": AttackCase(PGD(2))}, balls={"linf": 0.05})
        tester = trainer_with(ResumableTest(str(tmp_path / "state")), attack, default_root_dir=tmp_path)
        tester.test(module, Digits(eval_batch_size=10, test_images=20), verbose=False)

    tested()
    tested()
    with pytest.raises(SettingError, match=r"^ResumableTest.folder: got .*; it holds results of other method: give"):
        tested(**change)


def test_a_state_of_other_code_of_ones_own_is_refused(trained, tmp_path, monkeypatch):
    """Regression: verdicts of a forward pass that was edited since were taken."""

    def tested():
        path.write_text(source)
        monkeypatch.delitem(sys.modules, "my_resumed_method", raising=False)
        importlib.invalidate_caches()
        module = importlib.import_module("my_resumed_method")
        attack = AdversarialEvaluation({"own": AttackCase(module.Attack(3))}, balls={"linf": 0.05})
        data = Digits(eval_batch_size=10, test_images=20)
        tester = trainer_with(ResumableTest(str(tmp_path / "state")), attack, default_root_dir=tmp_path)
        tester.test(module.Method(copy.deepcopy(trained.classifier), epsilon=0.1), data, verbose=False)

    path = tmp_path / "my_resumed_method.py"
    monkeypatch.syspath_prepend(tmp_path)
    source = "from robust.attacks import PGD\nfrom tests.callbacks.trained import Plain\n"
    source += "class Attack(PGD): pass\nclass Method(Plain):\n    def forward(self, x): return self.classifier(x)\n"
    tested()
    tested()
    source += "# edited\n"
    with pytest.raises(SettingError, match=r"^ResumableTest.folder: got .*; it holds results of other own code"):
        tested()


def test_a_test_behind_a_training_continues_from_its_checkpoint(tmp_path):
    """What changes in training is no setting of the method."""
    module = InstanceAdaptiveTraining(stored().classifier, epsilon=0.05, warmup_epochs=0)
    data = Digits(batch_size=32, eval_batch_size=10, test_images=20)
    results = []
    for fitted in (True, False):
        Counting.calls, Counting.last = 0, 10**9
        test = AdversarialEvaluation({"pgd": AttackCase(Counting(PGD(2)))}, balls={"linf": 0.05})
        resumable = ResumableTest(str(tmp_path / "state"))
        trainer = trainer_with(resumable, test, max_epochs=1, limit_train_batches=3, default_root_dir=tmp_path)
        if fitted:
            trainer.fit(module, data)
            trainer.save_checkpoint(tmp_path / "last.ckpt")
            results.append((trainer.test(module, data, verbose=False)[0], Counting.calls))
        else:
            fresh = InstanceAdaptiveTraining(stored().classifier, epsilon=0.05, warmup_epochs=0)
            found = trainer.test(fresh, data, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)[0]
            results.append((found, Counting.calls))
    assert results == [(results[0][0], 2), (results[0][0], 0)]
