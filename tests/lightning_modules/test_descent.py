"""The parameters and the schedule of each optimizer."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from datamodules import Digits
from lightning_modules import (
    MNGAC,
    ContextualBudgets,
    Learn2Perturb,
    RobustClassifier,
    RobustnessScoreTraining,
    StandardTraining,
)
from robust.errors import SettingError
from robust.networks import AdversarialGenerator, Noisy


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def parameters_of(optimizer):
    return [id(weight) for group in optimizer.param_groups for weight in group["params"]]


def halved(optimizer):
    return ExponentialLR(optimizer, 0.5)


class Scaled(StandardTraining):
    """A method with a weight of its own, whose optimizer it does not name."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.log_scale = nn.Parameter(torch.zeros(()))


def test_a_weight_that_no_optimizer_trains_is_named():
    """Regression: it kept its first value, without a word."""
    module = Scaled(network())
    with pytest.raises(SettingError, match=r"^Scaled: got 'log_scale'; no optimizer would train them; add them"):
        module.configure_optimizers()
    module.log_scale.requires_grad_(False)
    module.configure_optimizers()


class Grouped(Scaled):
    """A method whose weights are in groups with settings of their own, as torch's optimizers take them."""

    def optimizer_specs(self):
        (spec,) = super().optimizer_specs()
        groups = [{"params": list(spec.parameters)}, {"params": [self.log_scale], "lr": 0.5}]
        return [spec._replace(parameters=groups)]


def test_weights_in_groups_are_listed():
    (optimizer,), _ = Grouped(network()).configure_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]


@pytest.mark.parametrize("method", [MNGAC, ContextualBudgets, RobustnessScoreTraining])
def test_classifier_and_generator_have_their_own_optimizers_and_schedules(method):
    module = method(network(), AdversarialGenerator(), generator_lr_scheduler=halved)
    optimizers, (schedule,) = module.configure_optimizers()
    for optimizer, part in zip(optimizers, (module.classifier, module.generator), strict=True):
        assert parameters_of(optimizer) == [id(weight) for weight in part.parameters()]
    assert schedule.optimizer is optimizers[1]
    _, schedules = method(network(), AdversarialGenerator(), lr_scheduler=halved).configure_optimizers()
    assert [schedule.optimizer.param_groups[0]["params"][0].shape for schedule in schedules] == [(10, 784)]


@pytest.mark.parametrize("method", [MNGAC, ContextualBudgets])
def test_without_a_generator_there_is_one_optimizer(method):
    module = method(network(), lr_scheduler=halved, generator_lr_scheduler=halved)
    (optimizer,), (schedule,) = module.configure_optimizers()
    assert parameters_of(optimizer) == [id(weight) for weight in module.classifier.parameters()]
    assert schedule.optimizer is optimizer
    assert module.partially_used == []


class Own(RobustClassifier):
    """A user's method with a training step alone."""

    def training_step(self, batch, batch_idx):
        self.descend(F.cross_entropy(self(batch[0]), batch[1]), *self.all_optimizers())


class Returns(Own):
    """Returns its loss, as with Lightning's automatic optimization."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


class Vector(Own):
    """Descends the loss of each example."""

    def training_step(self, batch, batch_idx):
        self.descend(F.cross_entropy(self(batch[0]), batch[1], reduction="none"), *self.all_optimizers())


class Detached(Own):
    """Descends a loss without a gradient."""

    def training_step(self, batch, batch_idx):
        self.descend(F.cross_entropy(self(batch[0]), batch[1]).detach(), *self.all_optimizers())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Returns, r"Returns.training_step: got 'Tensor'; nothing steps what it returns; call self.descend"),
        (Vector, r"Vector.training_step: got 'a loss of shape \(8,\)'; give a scalar, such as its mean"),
        (Detached, "Detached.training_step: got 'a loss without a gradient'; no gradient leads from it to a weight"),
    ],
)
def test_a_training_step_that_would_train_nothing_is_refused(method, message, tmp_path):
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, logger=False, default_root_dir=tmp_path)
    with pytest.raises(SettingError, match=message):
        trainer.fit(method(network()), datamodule=Digits(batch_size=8))


def test_scaled_gradients_are_refused_where_several_optimizers_step_after_one_backward_pass():
    module = ContextualBudgets(network(), AdversarialGenerator(), gradient_clip=None)
    module._trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(SettingError, match=r"trainer.precision: got '16-mixed'; ContextualBudgets steps several"):
        module.step(None, None)


def test_they_are_refused_before_the_training_too():
    """Regression: Learn2Perturb stopped in the first epoch with noise."""
    noisy = Noisy(network(), after=["0"], image_shape=[1, 28, 28])
    for module in (ContextualBudgets(network(), AdversarialGenerator(), gradient_clip=None), Learn2Perturb(noisy)):
        module._trainer = SimpleNamespace(precision="16-mixed", strategy=None, datamodule=None)
        name = type(module).__name__
        with pytest.raises(SettingError, match=rf"trainer.precision: got '16-mixed'; {name} steps several optimizers"):
            module.check_trainer("fit")


def test_closures_are_refused():
    """Regression: the first step ended in a TypeError."""
    module = StandardTraining(network(), optimizer=torch.optim.LBFGS)
    with pytest.raises(SettingError, match=r"optimizer: got 'LBFGS'; it needs closures; give one such as torch"):
        module.configure_optimizers()


def test_a_method_of_ones_own_needs_a_training_step_alone(tmp_path):
    module = Own(network(), optimizer=lambda params: torch.optim.SGD(params, lr=0.5), lr_scheduler=halved)
    before = module.classifier[1].weight.detach().clone()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=Digits(batch_size=8))
    assert not torch.equal(before, module.classifier[1].weight)
    assert module.all_optimizers()[0].param_groups[0]["lr"] == 0.25
