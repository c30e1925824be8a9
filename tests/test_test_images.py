"""Tests on a part of the images: which ones, their verdicts, intervals and the estimate of the time."""

import base64
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Callback, LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import AdversarialEvaluation, AttackCase, CertifiedEvaluation, GradientMaskingChecks, ResumableTest
from callbacks.progress import Progress
from callbacks.results import _intervals
from datamodules import Arrays, Digits
from datamodules.batches import spread
from robust.attacks import PGD, Square
from robust.errors import SettingError
from robust.metrics.confidence import wilson_interval
from tests.callbacks.trained import Plain, measured, stored, trainer_with
from tests.testers import ROOT, run

pytestmark = pytest.mark.filterwarnings("ignore:ckpt_path. got None", "ignore:gradient masking")


@given(st.integers(1, 400), st.integers(0, 2000))
def test_images_are_spread_and_depend_on_the_numbers_alone(count, more):
    chosen = spread(count, count + more)
    assert len(chosen) == count
    assert chosen[0] >= 0
    assert chosen[-1] < count + more
    assert chosen == spread(count, count + more)
    assert chosen.step == (count + more) // count


def test_some_images_get_the_verdicts_that_they_get_among_all():
    """Draws depend on the image's index in the data: a limited test judges as the whole one does, in any batches."""
    module, outcomes = stored(), {}
    for images, size in ((None, 64), (50, 7)):
        evaluation = AdversarialEvaluation({"pgd": AttackCase(PGD(2, restarts=2))}, balls={"linf": 0.05})
        measured(module, evaluation, test_images=images, eval_batch_size=size)
        record = evaluation.recorded.outcomes["test/accuracy/pgd/linf_0.05"]
        outcomes[images] = bits(record)
    assert outcomes[50] == [outcomes[None][index] for index in spread(50, 299)]


@pytest.mark.parametrize(
    "evaluation", [CertifiedEvaluation(pgd_steps=0), AdversarialEvaluation({"pgd": AttackCase(PGD(1))})]
)
def test_the_images_that_are_correct_without_perturbation_are_recorded(evaluation):
    metrics = measured(stored(), evaluation, test_images=50)
    verdicts = bits(evaluation.recorded.outcomes["test/accuracy/clean"])
    assert len(verdicts) == 50
    assert sum(verdicts) / 50 == pytest.approx(metrics["test/accuracy/clean"])


def test_a_test_after_one_that_stopped_counts_its_own_images_alone():
    class Stopping(Callback):
        def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
            raise KeyboardInterrupt

    module = stored()
    whole = measured(stored())
    with pytest.raises(SystemExit):
        measured(module, Stopping(), eval_batch_size=40)
    assert measured(module) == whole


def test_images_in_steps_that_miss_classes_are_refused(tmp_path):
    """Regression: every tenth image of a cycle of ten classes has one class, whose accuracy passed as that of all."""
    parts = {"images": np.zeros((300, 1, 4, 4), np.float32), "labels": np.arange(300) % 10}
    cycle = {f"{split}_{name}": values for split in ("train", "test") for name, values in parts.items()}
    np.savez(tmp_path / "cycle.npz", **cycle)
    message = "data.test_images: got 30; 1 of 10 images has other classes than all 300, whose order is regular; give an"
    with pytest.raises(SettingError, match=f"^{message}other number, or shuffle the test images$"):
        Arrays(path=str(tmp_path / "cycle.npz"), test_images=30).test_dataloader()
    assert len(Arrays(path=str(tmp_path / "cycle.npz"), test_images=27).test_dataloader()) == 1


def bits(record):
    packed = np.frombuffer(base64.b64decode(record["correct"]), dtype=np.uint8)
    return np.unpackbits(packed)[: record["count"]].tolist()


def test_wrong_numbers_of_images_are_named():
    with pytest.raises(SettingError, match=r"^data.test_images: got 0; give 1 or more"):
        Digits(test_images=0)
    with pytest.raises(SettingError, match=r"^data.test_images: got 300; the test has 299 images; give at most that"):
        Digits(test_images=300).test_dataloader()


def test_intervals_are_of_accuracies_on_a_part_of_the_images():
    metrics = {"test/accuracy/clean": 0.5, "test/accuracy/clean/std": 0.1, "test/robustness_score/r2": 1.0}
    assert _intervals(metrics, 299, 299) == {}
    assert _intervals(metrics, 100, 299).keys() == {"test/accuracy/clean"}


def test_a_test_of_some_batches_counts_their_images_alone(tmp_path):
    quickstart = [f"--config={ROOT / 'configs' / 'quickstart.yaml'}", "--trainer.callbacks=[]"]
    _, record = run("test", [*quickstart, "--data.eval_batch_size=10", "--trainer.limit_test_batches=2"], tmp_path)
    assert record["samples"] == {"test": 20}
    assert record["intervals"] == {}, "the first images are no sample of all"


@pytest.mark.parametrize("batches", [2, 1])
def test_a_test_of_drawn_images_has_intervals_for_all(batches, tmp_path):
    limits = ["--data.test_images=20", "--data.eval_batch_size=10", f"--trainer.limit_test_batches={batches}"]
    quickstart = [f"--config={ROOT / 'configs' / 'quickstart.yaml'}", "--trainer.callbacks=[]"]
    _, record = run("test", [*quickstart, *limits], tmp_path)
    expected = wilson_interval(record["metrics"]["test/accuracy/clean"], 20, 299)
    assert record["intervals"] == ({"test/accuracy/clean": pytest.approx(expected)} if batches == 2 else {})


@pytest.mark.thorough
@pytest.mark.parametrize("batch_size", [100, 300])
def test_a_trial_tells_the_time_of_a_long_test_before_it_starts_and_changes_nothing(
    batch_size, monkeypatch, caplog, tmp_path
):
    def evaluations():
        attacks = {"pgd": AttackCase(PGD(5)), "square": AttackCase(Square(queries=5))}
        return [
            CertifiedEvaluation(),
            AdversarialEvaluation(attacks, balls={"linf": 0.05, "l2": 0.5}),
            GradientMaskingChecks({"linf": 0.05}, steps=1),
        ]

    def metrics(*others):
        callbacks = evaluations()
        values = measured(stored(), *others, *callbacks, eval_batch_size=batch_size)
        return values, [each.recorded.outcomes for each in callbacks]

    expected = metrics(Progress())
    assert "from a trial" not in caplog.text, "it is short"
    monkeypatch.setattr("callbacks.trial.LONG", 0.0)
    monkeypatch.setattr("callbacks.progress.SHORT", 0.0)
    with caplog.at_level("INFO"):
        assert metrics(Progress(), ResumableTest(str(tmp_path / "kept"))) == expected
    assert re.search(r"Test: about \d+\.\d min, estimated from a trial on a few images", caplog.text)
    assert metrics(ResumableTest(str(tmp_path / "kept"))) == expected


def test_a_wrong_batch_is_named_before_a_trial():
    class Bytes(LightningDataModule):
        def test_dataloader(self):
            images = torch.zeros(9, 1, 28, 28, dtype=torch.uint8)
            return DataLoader(TensorDataset(images, torch.zeros(9, dtype=torch.long)), batch_size=9)

    evaluation = AdversarialEvaluation({"pgd": AttackCase(PGD(1))})
    with pytest.raises(SettingError, match=r"^images of test batch 0: got 'torch.uint8'; give float images"):
        trainer_with(Progress(), evaluation).test(stored(), Bytes(), verbose=False)


def test_an_evaluation_that_does_not_fit_is_refused_before_a_trial(monkeypatch):
    """Regression: behind ``Progress``, the trial took the refusal for its own failure, and the test went on."""

    class Unfit(GradientMaskingChecks):
        def try_out(self, module, x, y):
            raise SettingError("Unfit", 1, "leave it out")

    monkeypatch.setattr("callbacks.trial.LONG", 0.0)
    with pytest.raises(SettingError, match=r"^Unfit: got 1; leave it out"):
        measured(stored(), Progress(), Unfit({"linf": 0.05}, steps=1), eval_batch_size=100)


def test_a_test_goes_on_after_a_trial_that_failed_with_the_draws_of_one_without(monkeypatch, caplog, tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = stored().classifier

        def forward(self, x):
            return self.network(x + 0.3 * torch.randn_like(x))

    class Stochastic(Plain):
        stochastic = True

    def refusing(network, threat_model, x, y):
        sizes.append(len(x))
        if len(x) <= 8:
            raise ZeroDivisionError("too few")
        return x

    def metrics(*others):
        torch.manual_seed(0)
        attacks = {"mine": AttackCase(refusing, norm="linf")}
        return measured(Stochastic(Noisy(), epsilon=0.05), *others, AdversarialEvaluation(attacks), eval_batch_size=299)

    sizes = []
    monkeypatch.setattr("callbacks.trial.LONG", 0.0)
    expected, resumable = metrics(), ResumableTest(str(tmp_path / "kept"))
    alone = len(sizes)
    with caplog.at_level("INFO"):
        assert metrics(Progress(), resumable) == expected
    assert "Test: no estimate of its time, because a trial on 8 images failed: too few" in caplog.text
    assert len(sizes) == 2 * alone + 1, "the first of the trial raised"
    assert not resumable.paused


@pytest.mark.thorough
def test_the_time_of_a_long_test_is_estimated_after_its_first_batch(monkeypatch, caplog):
    monkeypatch.setattr("callbacks.progress.SHORT", 0.0)
    with caplog.at_level("INFO"):
        measured(stored(), Progress(), GradientMaskingChecks({"linf": 0.05}, steps=1), eval_batch_size=100)
        assert "Test: about 0.0 min for the other 2 batches, estimated from the first batch" in caplog.text
        caplog.clear()
        measured(stored(), Progress(), GradientMaskingChecks({"linf": 0.05}, steps=1), eval_batch_size=300)
        assert "from the first batch" not in caplog.text
