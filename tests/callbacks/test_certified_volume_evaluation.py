"""The evaluation by certified volume: metrics equal a direct computation; resumption; errors."""

import copy
import csv
import math
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from callbacks import CertifiedVolume
from callbacks.evaluation.saved_rows import concatenate
from datamodules import Digits
from lightning_modules import StandardTraining
from robust.bounds import CertifiedBox, FeedForwardVerifier, LargestCertifiedBox
from robust.errors import ContradictionError, SettingError, UnsupportedLayerError
from robust.metrics.confidence import wilson_interval
from tests.callbacks.trained import images, trainer_with
from tests.testers import KilledError

QUICK = {"steps": 12, "dual_every": 3, "penalty_every": 4, "learning_rate": 0.03, "shrink": 0.8}


def ibp(**settings):
    return LargestCertifiedBox(FeedForwardVerifier("ibp"), **(QUICK | settings))


def volumes(trained, folder, callback, **settings):
    trainer = trainer_with(callback, default_root_dir=folder, **settings)
    return trainer.test(trained, datamodule=Digits(eval_batch_size=64), verbose=False)[0]


class Counting(LargestCertifiedBox):
    """Counts the images of each search, and raises an error before batch ``stop``; both are no settings."""

    searched: ClassVar[list[int]] = []
    most: ClassVar[float] = math.inf

    def __init__(self, stop=math.inf):
        super().__init__(FeedForwardVerifier("ibp"), **QUICK)
        Counting.searched, Counting.most = [], stop

    def __call__(self, network, x, y, *rest):
        if len(Counting.searched) == Counting.most:
            raise KilledError
        Counting.searched.append(len(x))
        return super().__call__(network, x, y, *rest)


def test_metrics_equal_a_direct_computation(trained, tmp_path):
    callback = CertifiedVolume(ibp(), num_samples=40, epsilons=[0.05, 0.02], seed=3)
    metrics = volumes(trained, tmp_path, callback)
    x, y = images()
    chosen = torch.randperm(299, generator=torch.Generator().manual_seed(3))[:40].sort().values
    largest = ibp()(trained.classifier, x[chosen], y[chosen])
    epsilons = largest.budgets.double().log().flatten(1).mean(1).exp()
    assert metrics["test/certified_volume/samples"] == 40
    assert metrics["test/certified_volume/certified"] == pytest.approx(largest.certified.double().mean().item())
    assert metrics["test/certified_volume/epsilon"] == pytest.approx(
        epsilons[largest.certified].mean().item(), rel=1e-4
    )
    accuracies = []
    for epsilon in (0.05, 0.02):
        name = f"test/certified_accuracy/volume_{epsilon}"
        accuracies.append((epsilons >= epsilon).double().mean().item())
        assert metrics[name] == pytest.approx(accuracies[-1], abs=1e-6)
        ends = wilson_interval(accuracies[-1], 40, 299)
        assert (metrics[f"{name}/low"], metrics[f"{name}/high"]) == pytest.approx(ends, abs=1e-6)
        assert metrics[f"test/certified_accuracy/capped_volume_{epsilon}"] <= metrics[name]
    assert accuracies[0] < accuracies[1] < 1
    rows = list(csv.DictReader((tmp_path / "certified_volume" / "test.csv").read_text().splitlines()))
    assert [int(row["sample"]) for row in rows] == chosen.tolist()
    assert [int(row["label"]) for row in rows] == y[chosen].tolist()
    assert [float(row["epsilon"]) for row in rows] == pytest.approx(epsilons.tolist(), rel=1e-3)


class Fixed(LargestCertifiedBox):
    """Budgets of 4 in the upper and 0.05 in the lower half: the volume of 0.447, or of 0.224 with a cap of 1."""

    def __call__(self, network, x, y, *rest):
        budgets = torch.full_like(x, 4.0)
        budgets[:, :, 14:] = 0.05
        return CertifiedBox(budgets, torch.ones_like(y, dtype=torch.bool))


class Zeros(Digits):
    """Images of class 0 only."""

    def load(self, split):
        images = super().load(split)
        images.labels.zero_()
        return images


def constant():
    """A network that always predicts class 0, so that every box is certified correctly."""
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        classifier[1].weight.zero_()
        classifier[1].bias.copy_(torch.arange(10) == 0)
    return StandardTraining(classifier, epsilon=0.05)


@pytest.mark.filterwarnings("ignore:model.classifier. its outputs sum to 1")
def test_budgets_above_1_count_as_1_in_the_capped_metrics(tmp_path):
    callback = CertifiedVolume(Fixed(), num_samples=20, epsilons=[0.2, 0.3, 0.5])
    trainer = trainer_with(callback, default_root_dir=tmp_path)
    metrics = trainer.test(constant(), datamodule=Zeros(eval_batch_size=64), verbose=False)[0]
    name = "test/certified_accuracy"
    assert [metrics[f"{name}/volume_{epsilon}"] for epsilon in (0.2, 0.3, 0.5)] == [1, 1, 0]
    assert [metrics[f"{name}/capped_volume_{epsilon}"] for epsilon in (0.2, 0.3, 0.5)] == [1, 0, 0]
    assert metrics["test/certified_volume/epsilon"] == pytest.approx(0.2**0.5)


def test_a_certified_box_that_an_attack_breaks_stops_the_evaluation(trained, tmp_path):
    message = r"unsound bound: FeedForwardVerifier certified \d+ of 20 .* in their certified boxes, at data indices \d+"
    with pytest.raises(ContradictionError, match=message):
        volumes(copy.deepcopy(trained), tmp_path, CertifiedVolume(Fixed(), num_samples=20))


def test_an_interrupted_evaluation_continues(trained, tmp_path):
    settings = {"num_samples": 30, "batch_size": 8}
    whole = volumes(trained, tmp_path / "whole", CertifiedVolume(Counting(), **settings))
    settings["state_folder"] = str(tmp_path / "state")
    with pytest.raises(KilledError):
        volumes(trained, tmp_path, CertifiedVolume(Counting(stop=2), **settings))
    saved = tmp_path / "state" / "process-0.pt"
    saved.rename(saved.with_name("process-1.pt"))  # as if the second of two processes had done it
    again = Counting()
    metrics = volumes(trained, tmp_path / "again", CertifiedVolume(again, **settings))
    assert again.searched == [8, 6]
    assert metrics == pytest.approx(whole, rel=1e-6)
    tables = [(tmp_path / name / "certified_volume" / "test.csv").read_text() for name in ("whole", "again")]
    assert tables[0] == tables[1]
    assert not list((tmp_path / "state").glob("*.unfinished"))
    done = Counting(stop=0)  # other sizes without any search
    more = volumes(trained, tmp_path, CertifiedVolume(done, **settings, epsilons=[0.01]))
    assert more["test/certified_accuracy/volume_0.01"] >= whole["test/certified_accuracy/volume_0.05"]


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_shows_the_number_of_completed_images(shown, trained, tmp_path, capsys):
    trainer = pl.Trainer(accelerator="cpu", enable_progress_bar=shown, logger=False, default_root_dir=tmp_path)
    callback = CertifiedVolume(ibp(steps=3), num_samples=5, batch_size=2)
    trainer.callbacks.append(callback)
    trainer.test(trained, datamodule=Digits(), verbose=False)
    printed = capsys.readouterr().out
    assert ("Certified volume" in printed) is shown
    assert ("5/5" in printed) is shown


@pytest.mark.parametrize("other", ["search settings", "weights", "images"])
def test_results_that_depend_on_other_values_are_refused(other, trained, tmp_path):
    settings = {"num_samples": 2, "state_folder": str(tmp_path)}
    volumes(trained, tmp_path / "run", CertifiedVolume(ibp(steps=1), **settings))
    search = ibp(steps=2 if other == "search settings" else 1)
    if other == "weights":
        trained = copy.deepcopy(trained)
        with torch.no_grad():
            trained.classifier[0].weight[0, 0, 0, 0] += 1
    settings["seed"] = 1 if other == "images" else 0
    with pytest.raises(SettingError, match=f"state_folder: got .*results of other {other}: give another folder"):
        volumes(trained, tmp_path / "run", CertifiedVolume(search, **settings))


class Configured(FeedForwardVerifier):
    """A user's verifier, with settings of any type."""

    def __init__(self, order):
        super().__init__("ibp")
        self.order, self.options, self.dtype = order, {"a": 1}, torch.float32


def test_a_verifier_has_settings_of_any_type(trained, tmp_path):
    settings = {"num_samples": 2, "state_folder": str(tmp_path)}
    for _ in range(2):
        search = LargestCertifiedBox(Configured([1, 2]), steps=1)
        volumes(trained, tmp_path / "run", CertifiedVolume(search, **settings))
    search = LargestCertifiedBox(Configured([2, 1]), steps=1)
    with pytest.raises(SettingError, match=r"state_folder: got .*results of other search settings: give another"):
        volumes(trained, tmp_path / "run", CertifiedVolume(search, **settings))


def test_a_file_without_results_is_refused(trained, tmp_path):
    (tmp_path / "process-0.pt").write_bytes(b"else")
    with pytest.raises(SettingError, match=r"state_folder: got .*process-0.pt'; .*holds no results"):
        volumes(trained, tmp_path, CertifiedVolume(ibp(), num_samples=2, state_folder=str(tmp_path)))


def test_a_row_of_several_processes_is_taken_once():
    one = {"index": torch.tensor([4, 1]), "value": torch.tensor([40.0, 10.0])}
    other = {"index": torch.tensor([1, 2]), "value": torch.tensor([11.0, 20.0])}
    assert concatenate([{}, {}]) == {}
    both = concatenate([one, {}, other])
    assert both["index"].tolist() == [1, 2, 4]
    assert both["value"].tolist() == [10, 20, 40]


def test_a_part_of_the_test_or_too_many_samples_are_refused(trained, tmp_path):
    with pytest.raises(SettingError, match=r"trainer.limit_test_batches: got 1; .*CertifiedVolume.num_samples"):
        volumes(trained, tmp_path, CertifiedVolume(ibp(), num_samples=2), limit_test_batches=1)
    few = Digits(eval_batch_size=64, test_images=9)
    with pytest.raises(
        SettingError, match=r"data.test_images: got 9; leave it out: CertifiedVolume draws its images from"
    ):
        trainer_with(CertifiedVolume(ibp(), num_samples=2), default_root_dir=tmp_path).test(trained, few)
    with pytest.raises(SettingError, match=r"CertifiedVolume.num_samples: got 300; the test has 299 images"):
        volumes(trained, tmp_path, CertifiedVolume(ibp(), num_samples=300))


def test_a_network_that_cannot_be_bounded_raises_before_the_second_batch():
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(784, 5), nn.LogSigmoid(), nn.Linear(5, 10))
    seen = []
    other = pl.callbacks.LambdaCallback(on_test_batch_start=lambda *args: seen.append(args[3]))
    trainer = trainer_with(other, CertifiedVolume(ibp(), num_samples=2))
    with pytest.raises(UnsupportedLayerError, match="LogSigmoid"):
        trainer.test(StandardTraining(classifier), Digits(eval_batch_size=64))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_samples", 0), ("batch_size", 0), ("confidence", 1.0), ("epsilons", [0.1, 0.0]), ("epsilons", [1.5])],
)
def test_wrong_settings(setting, value):
    with pytest.raises(SettingError, match=rf"^CertifiedVolume\.{setting}: got"):
        CertifiedVolume(**{setting: value})


def test_the_interval_covers_the_fraction_of_all_images_at_its_confidence_level():
    assert wilson_interval(0.1, 100, 10**12) == pytest.approx((0.0552, 0.1744), abs=1e-4)  # textbook value
    assert wilson_interval(0.3, 50, 50) == pytest.approx((0.3, 0.3))
    low, high = wilson_interval(0.0, 20, 1000)
    assert low == pytest.approx(0, abs=1e-9)
    assert 0.1 < high < 0.2
    population = torch.arange(1000) < 80
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(1000):
        fraction = population[torch.randperm(1000, generator=generator)[:300]].double().mean().item()
        low, high = wilson_interval(fraction, 300, 1000, confidence=0.9)
        covered += low <= 0.08 <= high
    assert 0.86 < covered / 1000 < 0.95
