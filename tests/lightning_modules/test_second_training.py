"""A module that is trained a second time begins like a new one, but for its weights; frozen and drawn weights."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from callbacks import EpsilonScheduler
from cli.known_errors import known_error
from datamodules import Digits
from lightning_modules import (
    MNGAC,
    ContextualBudgets,
    FreeAdversarialTraining,
    InstanceAdaptiveTraining,
    StandardTraining,
)
from robust.attacks import PGD
from robust.errors import SettingError
from robust.networks import NoiseGenerator
from robust.random import rand_like
from tests.callbacks.trained import trainer_with


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def fit(module, *callbacks, epochs=1):
    settings = {"max_epochs": epochs, "limit_train_batches": 2, "limit_val_batches": 0}
    trainer = trainer_with(*callbacks, **settings)
    trainer.fit(module, datamodule=Digits(batch_size=8))
    return trainer


class Means(StandardTraining):
    """Logs a number as the mean of its epochs below ``until``, and keeps the first random number of a training."""

    number = 1.0
    until = 10

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        if self.current_epoch < self.until:
            self.log_epoch_mean("train/x", torch.full((8,), self.number))
        if batch_idx == 0:
            self.drawn = rand_like(batch[0]).flatten()[0].item()


def test_means_are_those_of_the_second_training():
    """Regression: they were means over the epochs of both trainings."""
    module = Means(network())
    fit(module)
    module.number = 3.0
    assert fit(module).callback_metrics["train/x"] == 3


def test_a_mean_is_logged_in_its_epoch_alone(monkeypatch):
    """Regression: epochs without values had the mean of the last epoch that had some."""
    logged = []
    module = Means(network())
    module.until = 1
    log = module.log
    monkeypatch.setattr(module, "log", lambda name, *args, **kwargs: (logged.append(name), log(name, *args, **kwargs)))
    fit(module, epochs=3)
    assert logged.count("train/x") == 1


def test_draws_depend_on_the_seed_of_the_second_training(tmp_path):
    """Regression: all later trainings had the draws of the first."""
    pl.seed_everything(1)
    module = Means(network())
    trainer = fit(module)
    first = module.drawn
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    pl.seed_everything(2)
    fit(module)
    assert module.training_seed == 2
    assert module.drawn != first
    loaded = Means.load_from_checkpoint(tmp_path / "c.ckpt", classifier=network())
    assert loaded.training_seed == 1
    pl.seed_everything(2)
    fit(loaded)
    assert loaded.drawn == module.drawn
    trainer = trainer_with(max_epochs=2, limit_train_batches=2, limit_val_batches=0)
    pl.seed_everything(3)
    trainer.fit(loaded, datamodule=Digits(batch_size=8), ckpt_path=tmp_path / "c.ckpt")
    assert loaded.training_seed == 1


def test_epsilon_is_full_without_a_schedule():
    """Regression: a training without a schedule had the fraction at which that of an earlier one had ended."""
    module = ContextualBudgets(network(), epsilon=0.1)
    with pytest.warns(UserWarning, match="the ramp ends with epoch 4"):
        fit(module, EpsilonScheduler("linear", 1, length=4))
    assert module.current_epsilon == 0.1
    fit(module)
    assert module.current_epsilon == 0.1


def test_radii_are_not_taken_from_an_earlier_runs_data():
    """Regression: images of a loader had the radii of the data module of the trainer's last run."""
    module = InstanceAdaptiveTraining(network(), epsilon=0.1, attack=PGD(steps=1))
    trainer = fit(module)
    loader = DataLoader(TensorDataset(torch.rand(16, 1, 28, 28), torch.arange(16) % 10), 8)
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(SettingError, match=r"^data: got 'NoneType'; it has no method indices"):
        trainer.fit(module, loader)


def test_free_training_begins_with_its_own_perturbation():
    """Regression: it went on from the last perturbation of the earlier training."""
    pl.seed_everything(0)
    one, other = (FreeAdversarialTraining(network(), epsilon=0.1, replays=2) for _ in range(2))
    fit(one)
    other.load_state_dict(one.state_dict())
    for module in (one, other):
        pl.seed_everything(1)
        fit(module)
    assert torch.equal(one.classifier[1].weight, other.classifier[1].weight)


def test_intervals_cannot_draw_weights_that_a_file_gives(tmp_path):
    """Regression: the file's weights replaced those that were drawn."""
    two = nn.Sequential(*network(), nn.ReLU(), nn.Linear(10, 10))
    torch.save(two.state_dict(), tmp_path / "w.pth")
    module = ContextualBudgets(two, epsilon=0.1, interval_initialisation=True, weights=str(tmp_path / "w.pth"))
    with pytest.raises(SettingError, match=r"^model\.interval_initialisation: got True; model\.weights gives"):
        fit(module)
    trainer_with(limit_test_batches=1).test(module, Digits(batch_size=8), verbose=False)


@pytest.mark.parametrize("name", ["classifier", "generator"])
def test_networks_that_cannot_learn_are_refused(name):
    """Regression: the first step ended in a traceback."""
    networks = {"classifier": network(), "generator": NoiseGenerator(channels=1, width=4)}
    networks[name].requires_grad_(False)
    with pytest.raises(SettingError, match=rf"^model\.{name}: got '\w+'; all its weights are frozen, and MNGAC"):
        fit(MNGAC(**networks, generator_optimizer=lambda params: SGD(params, lr=0.1)))


def test_forked_processes_are_warned_of():
    """Regression: seed and noise switch of the trained module stayed in the processes, without a word."""
    trainer = trainer_with(max_epochs=1, limit_train_batches=1, limit_val_batches=0, devices=2, strategy="ddp_fork")
    module = Means(network())
    trainer.state.fn = "fit"
    module._trainer = trainer
    with pytest.warns(UserWarning, match="its processes are started by fork"):
        module.check_strategy([])


def test_lightnings_arguments_without_effect_are_refused(tmp_path):
    with pytest.raises(SettingError, match=r"^strict: got False; all weights must fit"):
        StandardTraining.load_from_checkpoint(tmp_path / "c.ckpt", strict=False)


def test_unused_weights_under_ddp_have_a_remedy():
    message = "It looks like your LightningModule has parameters that were not used in producing the loss returned by"
    assert str(known_error(RuntimeError(message))).startswith("trainer.strategy: got 'ddp'; a step does not use all")
