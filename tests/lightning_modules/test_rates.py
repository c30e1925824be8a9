"""Learning-rate schedules advance by epoch, by step or by a metric, and impossible ones are refused."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import ReduceLROnPlateau
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset

from datamodules import Digits
from lightning_modules import StandardTraining
from lightning_modules.base.rates import step_schedules
from robust.errors import SettingError
from robust.networks import SmallCNN
from robust.schedules import EachStep, PiecewiseLinear
from tests.small_run import SMALL
from tests.testers import QUIET, error_of

BATCHES, EPOCHS = 3, 4


class NoteRates(pl.Callback):
    """Records the learning rate of every batch."""

    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, module, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def fitted(schedule, module_class=StandardTraining, data=None, **settings):
    torch.manual_seed(0)
    note = NoteRates()
    module = module_class(SmallCNN(), optimizer=lambda p: SGD(p, lr=0.1), lr_scheduler=schedule)
    settings = {"limit_val_batches": 1, **settings}
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        limit_train_batches=BATCHES,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[note],
        **settings,
    )
    trainer.fit(module, **({"datamodule": Digits(batch_size=8)} if data is None else {"train_dataloaders": data}))
    return note.rates


def plain(schedule, steps_between):
    """Rates of a plain training loop that steps the schedule after a fixed number of batches."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    moved, rates = schedule(optimizer), []
    for step in range(BATCHES * EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % steps_between == 0:
            moved.step()
    return rates


@pytest.mark.thorough
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: schedules.ExponentialLR(o, 0.5),
        lambda o: schedules.MultiStepLR(o, [1, 3]),
        lambda o: schedules.CosineAnnealingLR(o, EPOCHS),
        lambda o: schedules.CosineAnnealingWarmRestarts(o, 2),
        lambda o: schedules.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
        lambda o: schedules.SequentialLR(
            o, [schedules.LinearLR(o, 0.1, total_iters=2), schedules.ExponentialLR(o, 0.5)], milestones=[2]
        ),
    ],
)
def test_most_advance_by_epoch_and_each_can_advance_by_step(schedule):
    assert fitted(schedule) == pytest.approx(plain(schedule, BATCHES))
    assert fitted(lambda o: EachStep(o, schedule)) == pytest.approx(plain(schedule, 1))


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: schedules.OneCycleLR(o, max_lr=0.1, total_steps=BATCHES * EPOCHS),
        lambda o: schedules.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=2),
    ],
)
def test_some_advance_by_step_by_default(schedule):
    assert fitted(schedule) == pytest.approx(plain(schedule, 1))


class InLightningsWords(StandardTraining):
    """A method that sets interval and frequency."""

    def configure_optimizers(self):
        optimizer = self.optimizer(self.classifier.parameters())
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": "step", "frequency": 2}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def test_lightnings_interval_and_frequency_apply():
    def schedule(optimizer):
        return schedules.ExponentialLR(optimizer, 0.5)

    assert fitted(schedule, InLightningsWords) == pytest.approx(plain(schedule, 2))


class WorseAndWorse(StandardTraining):
    """A validation loss that falls once and then rises."""

    def on_validation_epoch_end(self):
        self.log("val/wanted", [3.0, 2.0, 4.0, 5.0][self.current_epoch])


def test_a_plateau_of_a_metric_lowers_the_rate():
    def schedule(optimizer):
        return ReduceLROnPlateau(optimizer, monitor="val/wanted", factor=0.1, patience=0)

    rates = fitted(schedule, WorseAndWorse, num_sanity_val_steps=0)
    assert rates == pytest.approx([0.1] * 9 + [0.01] * 3)  # worse for the first time after the third epoch


def test_a_new_plateau_schedule_in_a_resumed_training_sees_the_last_metric_once():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = ReduceLROnPlateau(optimizer, monitor="val/wanted", factor=0.1, patience=0)
    config = SimpleNamespace(scheduler=schedule)
    trainer = SimpleNamespace(
        current_epoch=30, num_training_batches=1, check_val_every_n_epoch=1, lr_scheduler_configs=[config]
    )
    step_schedules(trainer, 0, {"val/wanted": 1.0})
    step_schedules(trainer, 0, {"val/wanted": 1.0})
    assert (optimizer.param_groups[0]["lr"], schedule.last_epoch) == (0.1, 30)


def rising(optimizer):
    return PiecewiseLinear(optimizer, [0, 4], [0, 1])


def test_impossible_schedules_are_refused_before_training():
    for schedule, message in (
        (lambda o: schedules.OneCycleLR(o, 0.1, total_steps=5), r"total_steps: got 5; the training has 12 steps"),
        (lambda o: EachStep(o, lambda p: schedules.OneCycleLR(p, 0.1, total_steps=5)), r"total_steps: got 5"),
        (schedules.ReduceLROnPlateau, r"lr_scheduler: got 'ReduceLROnPlateau'.*pytorch_lightning.cli"),
        (lambda o: EachStep(o, rising), "got 'EachStep'; PiecewiseLinear cannot move inside another schedule"),
        (
            lambda o: EachStep(o, lambda p: ReduceLROnPlateau(p, monitor="val/clean")),
            "ReduceLROnPlateau cannot move ins",
        ),
        (
            lambda o: schedules.SequentialLR(o, [rising(o), schedules.ExponentialLR(o, 0.5)], [2]),
            "got 'SequentialLR'; PiecewiseLinear cannot move inside another schedule; give it alone",
        ),
        (lambda o: schedules.ChainedScheduler([schedules.ExponentialLR(o, 0.5)]), r"ChainedScheduler.*SequentialLR"),
    ):
        with pytest.raises(SettingError, match=message):
            fitted(schedule)
    with pytest.raises(SettingError, match=r"lr_scheduler.monitor: got 'val/nothing'; the last validation logged"):
        fitted(lambda o: ReduceLROnPlateau(o, monitor="val/nothing"))


def test_torchs_own_plateau_is_refused_before_the_sanity_check(tmp_path, capsys):
    """Regression: the sanity check ended in an AttributeError, as the schedule has no monitor."""
    schedule = "--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"
    error = error_of(["fit", *SMALL[:-2], schedule, *QUIET, f"--trainer.default_root_dir={tmp_path}"], capsys)
    assert error.startswith(
        "model.lr_scheduler: got 'ReduceLROnPlateau'; it depends on a metric; give pytorch_lightning.cli."
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"limit_val_batches": 0}, r"trainer\.limit_val_batches: got 0; ReduceLROnPlateau steps after"),
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 4},
            r"trainer\.check_val_every_n_epoch: got None; Reduce",
        ),
        ({"val_check_interval": "00:00:10:00"}, r"trainer\.val_check_interval: got .*; ReduceLROnPlateau steps after"),
    ],
)
def test_a_plateau_needs_a_validation_in_a_known_epoch(settings, expected):
    """Regression: the training stopped at its second epoch, and said that the last validation logged nothing."""
    with pytest.raises(SettingError, match=expected):
        fitted(lambda o: ReduceLROnPlateau(o, monitor="val/wanted"), WorseAndWorse, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"limit_val_batches": 0},
        {"check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": None, "val_check_interval": 5},
    ],
)
def test_a_plateau_of_a_training_metric_needs_no_validation(settings):
    """Regression: it was refused."""

    def schedule(optimizer):  # no epoch is better by 10
        return ReduceLROnPlateau(
            optimizer, monitor="train/loss", factor=0.1, patience=0, threshold=10.0, threshold_mode="abs"
        )

    expected = [0.1] * (2 * BATCHES) + [0.01] * BATCHES + [0.001] * BATCHES
    assert fitted(schedule, **settings) == pytest.approx(expected)


def test_a_plateau_of_a_validations_metric_needs_a_loader_for_validation():
    """Regression: the training stopped at its second epoch, and said that the last validation logged nothing."""
    data = DataLoader(TensorDataset(torch.rand(8, 1, 28, 28), torch.arange(8)), 4)
    with pytest.raises(SettingError, match=r"^data: got 'no validation batches'; ReduceLROnPlateau steps after"):
        fitted(lambda o: ReduceLROnPlateau(o, monitor="val/accuracy/clean"), data=data)


@pytest.mark.parametrize("settings", [{"num_sanity_val_steps": 0}, {}])
def test_a_plateau_of_a_validation_in_some_epochs_needs_no_sanity_check(settings):
    """Regression: without a sanity check, as in a resumed run, no validation batches were found at the start."""

    def schedule(optimizer):
        return ReduceLROnPlateau(optimizer, monitor="val/wanted", factor=0.1, patience=0)

    expected = [0.1] * (4 * BATCHES)
    assert fitted(schedule, WorseAndWorse, check_val_every_n_epoch=2, **settings) == pytest.approx(expected)


def test_a_metric_that_the_training_does_not_log_ends_it_after_one_step():
    """Regression: it ended after an epoch, with "the last validation logged none"."""
    message = r"^lr_scheduler.monitor: got 'train/los'; the first step of the training logged train/loss; give one of"
    with pytest.raises(SettingError, match=message):
        fitted(lambda o: ReduceLROnPlateau(o, monitor="train/los"))
