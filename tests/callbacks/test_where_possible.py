"""Evaluations that need what is not everywhere: AutoAttack's package, copies of the images, an autoencoder."""

import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import AdversarialEvaluation, AttackCase, CorruptedAccuracy, GroupAccuracy, SampledRobustness
from datamodules import MNIST, MNISTC, Digits
from datamodules.batches import spread
from datamodules.mnist_c import CORRUPTIONS
from robust.attacks import APGD, PGD, AutoAttack
from robust.errors import SettingError
from robust.networks import Autoencoder
from robust.scores import R4, OnManifold
from tests.callbacks.trained import Plain, small, stored, trainer_with


class Coin(Plain):
    """Counts as a network with noise."""

    stochastic = True

    def forward(self, x):
        return self.classifier(x + 0.1 * torch.randn_like(x))


def measured(module, *callbacks, data=None):
    return trainer_with(*callbacks).test(module, data or Digits(test_images=6, eval_batch_size=4), verbose=False)[0]


def attacks(*names, **settings):
    cases = {"pgd": PGD(1, num_samples=2), "autoattack": AutoAttack()}
    return AdversarialEvaluation(
        {name: AttackCase(cases[name]) for name in names}, balls={"linf": 0.05, "l2": 0.5}, **settings
    )


def test_autoattack_is_left_out_where_its_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    evaluation = attacks("autoattack", "pgd", where_possible=True)
    with pytest.warns(UserWarning, match=r"^AdversarialEvaluation.autoattack is left out: install it: uv sync"):
        metrics = measured(stored(), evaluation)
    assert "test/accuracy/pgd/l2_0.5" in metrics
    assert not [name for name in metrics if "autoattack" in name]
    assert list(evaluation.skipped) == ["AdversarialEvaluation.autoattack"]
    with pytest.raises(SettingError, match="AutoAttack: got 'no package pyautoattack'; install it"):
        measured(stored(), attacks("autoattack", "pgd"))
    evaluation = attacks("autoattack", where_possible=True)
    with pytest.warns(UserWarning, match=r"^AdversarialEvaluation is left out: install it: uv sync"):
        assert measured(stored(), evaluation).keys() == {"test/accuracy/clean"}


def test_the_standard_autoattack_is_left_out_of_networks_with_noise():
    pytest.importorskip("pyautoattack", reason="needs the extra eval")
    evaluation = attacks("pgd", "autoattack", where_possible=True)
    with pytest.warns(UserWarning, match=r'left out: take "rand": two passes of this network differ'):
        metrics = measured(Coin(small()), evaluation)
    assert "test/accuracy/pgd/linf_0.05" in metrics
    assert not [name for name in metrics if "autoattack" in name]


@pytest.mark.parametrize(
    ("module", "sampler", "why"),
    [
        (stored(), OnManifold(), "give that of an autoencoder's training, or a trained autoencoder"),
        (Coin(small()), OnManifold(Autoencoder(code_size=2, width=1)), "its predictions differ from pass to pass"),
    ],
    ids=["no autoencoder", "noise"],
)
def test_r4_is_left_out_without_an_autoencoder_and_of_networks_with_noise(module, sampler, why):
    with pytest.warns(UserWarning, match=f"^SampledRobustness is left out: {why}"):
        metrics = measured(module, SampledRobustness(R4(sampler), where_possible=True))
    assert metrics.keys() == {"test/accuracy/clean"}
    with pytest.raises(SettingError, match=why):
        measured(module, SampledRobustness(R4(sampler)))


@pytest.fixture
def mnist(written):
    def make(**settings):
        return MNIST(root=str(written), verify_checksums=False, **settings)

    return make


def copies(root):
    return MNISTC(root=str(root), eval_batch_size=7)


@pytest.fixture
def corrupted(mnist, tmp_path):
    """Folder of noise with the labels of the test images."""
    labels = mnist().images("test").labels.numpy()
    for number, name in enumerate(CORRUPTIONS):
        folder = tmp_path / "mnist_c" / name
        folder.mkdir(parents=True)
        images = np.random.default_rng(number).integers(256, size=(len(labels), 28, 28, 1), dtype=np.uint8)
        np.save(folder / "test_images.npy", images)
        np.save(folder / "test_labels.npy", labels)
    return tmp_path


@pytest.mark.filterwarnings("ignore:data.verify_checksums")
def test_copies_of_the_test_images_are_judged_beside_them(mnist, corrupted):
    torch.manual_seed(0)
    module = Plain(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), epsilon=0.1)
    evaluation = CorruptedAccuracy(copies(corrupted))
    beside = measured(module, evaluation, data=mnist(eval_batch_size=3))
    alone = measured(module, GroupAccuracy(), data=copies(corrupted))
    names = {name for name in alone if "/group/" in name}
    assert len(names) == 16
    assert {name: beside[name] for name in names} == pytest.approx({name: alone[name] for name in names})
    assert len(evaluation.recorded.outcomes) == 15
    metrics = measured(module, CorruptedAccuracy(copies(corrupted)), data=mnist(test_images=2))
    chosen = torch.tensor(spread(2, len(mnist().images("test"))))
    x, y = copies(corrupted).load_corruption("fog")[chosen]
    assert metrics["test/accuracy/group/fog"] == pytest.approx(float((module(x).argmax(1) == y).double().mean()))


@pytest.mark.filterwarnings("ignore:data.verify_checksums")
def test_copies_that_are_absent_or_of_other_images_are_left_out(mnist, corrupted):
    module = stored()
    for root, data, why in (
        (
            corrupted / "none",
            mnist(),
            r"cannot read .*mnist_c.*; set data.download: true, give their folder as data.root or ROBUST_DATA, or",
        ),
        (corrupted, Digits(), r"its images are not copies of the test images of Digits; leave out CorruptedAccuracy"),
    ):
        with pytest.warns(UserWarning, match=f"^CorruptedAccuracy is left out: {why}"):
            metrics = measured(module, CorruptedAccuracy(copies(root), where_possible=True), data=data)
        assert metrics.keys() == {"test/accuracy/clean"}
        with pytest.raises(SettingError, match=f"^CorruptedAccuracy.data: got 'MNISTC'; {why}"):
            measured(module, CorruptedAccuracy(copies(root)), data=data)
    with pytest.raises(SettingError, match=r"^CorruptedAccuracy.data: got 'Digits'; give data in groups, such as MNIS"):
        CorruptedAccuracy(Digits())


@pytest.mark.filterwarnings("ignore:data.verify_checksums")
def test_copies_are_downloaded(mnist, corrupted):
    class Published(MNISTC):
        def fetch(self):
            shutil.copytree(corrupted / "mnist_c", self.folder / "mnist_c")

    class Unreachable(MNISTC):
        def fetch(self):
            raise OSError("no network")

    metrics = measured(stored(), CorruptedAccuracy(Published(root=str(corrupted / "new"), download=True)), data=mnist())
    assert "test/accuracy/group/mean" in metrics
    evaluation = CorruptedAccuracy(Unreachable(root=str(corrupted / "none"), download=True), where_possible=True)
    with pytest.warns(UserWarning, match="^CorruptedAccuracy is left out: the download failed .no network.; set data"):
        measured(stored(), evaluation, data=mnist())


CASES = {"targeted": APGD(1, loss="targeted_dlr"), "dlr": PGD(1, loss="dlr"), "pgd": PGD(1)}


@pytest.mark.parametrize(("classes", "refused"), [(4, ()), (3, ("targeted",)), (2, ("targeted", "dlr"))])
def test_losses_that_need_more_classes_are_known_before_the_training(classes, refused, recwarn):
    """Regression: they failed in the first batch of a test, also where they may be left out."""
    module = Plain(nn.Sequential(nn.Flatten(), nn.Linear(784, classes)), epsilon=0.1)
    data = TensorDataset(torch.rand(4, 1, 28, 28), torch.arange(4) % classes)
    cases = {name: AttackCase(attack) for name, attack in CASES.items()}
    evaluation = AdversarialEvaluation(cases, where_possible=True)
    metrics = trainer_with(evaluation).test(module, DataLoader(data, 4), verbose=False)[0]
    assert sorted(evaluation.skipped) == sorted(f"AdversarialEvaluation.{name}" for name in refused)
    measured = {name.split("/")[2] for name in metrics if name.endswith("linf_0.1")}
    assert measured == CASES.keys() - set(refused)
    if refused:
        message = rf"^AdversarialEvaluation\.attacks\.{refused[0]}\.attack\.loss: got .*{classes}? classes"
        with pytest.raises(SettingError, match=message):
            trainer_with(AdversarialEvaluation(cases), max_epochs=1).fit(module, DataLoader(data, 4))
