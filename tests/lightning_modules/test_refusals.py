"""What cannot work on the data is refused before the training."""

import warnings
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datamodules import Digits
from lightning_modules import (
    TRADES,
    YOPO,
    InstanceAdaptiveTraining,
    Learn2Perturb,
    MultiNormTraining,
    ParametricNoiseInjection,
    RobustnessScoreTraining,
    StandardTraining,
    WeightedMinimax,
)
from robust.attacks import PGD
from robust.errors import SettingError
from robust.networks import Noisy, NoisyWeights
from tests.callbacks.trained import small, trainer_with


def two_logits():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            lambda: ParametricNoiseInjection(NoisyWeights(two_logits()), attack=PGD(2, loss="dlr")),
            r"^model.attack: got 'PGD'; loss: got 'dlr'; it needs 3 classes",
        ),
        (
            lambda: MultiNormTraining(two_logits(), attack_l2=PGD(2, loss="dlr")),
            r"^model.attack_l2: got 'PGD'; loss: got 'dlr'; it needs 3 classes",
        ),
        (lambda: TRADES(two_logits(), attack=PGD(2, early_stop=True)), r"^model.attack.early_stop: got True; turn it"),
        (lambda: WeightedMinimax(two_logits(), attack=PGD(2, early_stop=True)), r"^model.attack.early_stop: got True"),
        (
            lambda: YOPO(nn.Sequential(OrderedDict(net=two_logits(), drop=Unused())), "drop.layer"),
            r"^model.first_layer: got 'drop.layer'; Sequential does not run it; give the first layer that it runs",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_training(module, message):
    """Regression: some attacks start after epochs, and then ended the training."""
    with pytest.raises(SettingError, match=message):
        module().check_shapes((1, 2, 2), 2)


class AlwaysDrops(nn.Module):
    """Dropout that evaluation mode does not switch off."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.layer(F.dropout(x.flatten(1), 0.5, training=True))


@pytest.mark.parametrize("method", [StandardTraining, TRADES])
def test_a_network_with_unknown_noise_is_refused(method):
    """Regression: it was evaluated as if each pass gave the same logits."""
    message = "^model.classifier: got 'AlwaysDrops, whose passes differ in evaluation mode'; derive its noise from"
    with pytest.raises(SettingError, match=message):
        method(AlwaysDrops()).check_shapes((1, 2, 2), 2)
    with pytest.raises(SettingError, match=message):
        method(AlwaysDrops()).check_batch(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), "batch 0")


class OfBatch(nn.Module):
    """Logits less their mean over the batch."""

    def forward(self, x):
        return (x - x.mean(0, keepdim=True)).flatten(1)[:, :2]


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (OfBatch(), "give layers"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)), "one image alone"),
    ],
)
def test_a_network_whose_logits_depend_on_the_batch_is_refused(network, reason):
    """Regression: its accuracy depended on the size of the batches."""
    kind = type(network).__name__
    message = f"^model.classifier: got '{kind}, whose logits depend on the other images of a batch .*; {reason}"
    with pytest.raises(SettingError, match=message):
        StandardTraining(network).check_shapes((1, 2, 2), 2)


def test_a_network_without_logits_for_each_image_is_refused():
    """Regression: the remedy was another number of classes, where a layer that flattens is missing."""
    with pytest.raises(SettingError, match=r"output \(1, 2, 2\)'; .*flatten or pool before its last layer"):
        StandardTraining(nn.Conv2d(1, 1, 1)).check_shapes((1, 2, 2), 2)


@pytest.mark.parametrize(("epochs", "warns"), [(1, True), (2, False)])
def test_a_training_that_ends_before_a_part_of_the_method_starts_warns(epochs, warns):
    """Regression: Learn2Perturb without noise and without attacked images was recorded under its name, silently."""
    module = InstanceAdaptiveTraining(small(), epsilon=0.1, attack=PGD(1), warmup_epochs=1)
    trainer = trainer_with(max_epochs=epochs, limit_train_batches=1, limit_val_batches=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, Digits(batch_size=8))
    expected = "model.warmup_epochs: got 1; with trainer.max_epochs 1 that part of the method never starts; give fewer"
    assert any(str(each.message).startswith(expected) for each in caught) is warns


def test_the_parts_of_the_methods_that_start_late_are_known():
    noisy = Noisy(two_logits(), ["1"], (1, 2, 2))
    assert Learn2Perturb(noisy, noise_delay=3, adversarial_delay=4).delays == {
        "noise_delay": 3,
        "adversarial_delay": 4,
    }
    assert ParametricNoiseInjection(NoisyWeights(two_logits())).delays == {"adversarial_delay": 5}
    module = RobustnessScoreTraining(two_logits(), nn.Identity(), warmup_epochs=2, generator_epochs=3)
    assert list(module.delays.values()) == [5]


class Unused(nn.Module):
    """The identity, with a layer that it does not run."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Dropout()

    def forward(self, x):
        return x


class InPlace(nn.Module):
    """A network that changes its input."""

    def __init__(self):
        super().__init__()
        self.layer = two_logits()

    def forward(self, x):
        return self.layer(x.mul_(0.5))


def test_a_network_that_changes_the_images_in_place_is_refused():
    """Regression: attacks then worked on other images, so that robust accuracies were of those."""
    with pytest.raises(SettingError, match=r"^model.classifier: got 'InPlace'; it changes the images in place"):
        StandardTraining(InPlace()).check_shapes((1, 2, 2), 2)
