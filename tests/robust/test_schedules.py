"""The piecewise linear schedule: its values, its state, and that training follows it batch by batch."""

import pytest
import pytorch_lightning as pl
import torch

from datamodules import Digits
from lightning_modules import StandardTraining
from robust.errors import SettingError
from robust.schedules import PiecewiseLinear


def make(epochs=(0, 12, 30), factors=(0, 1, 0)):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.21)
    return optimizer, PiecewiseLinear(optimizer, epochs, factors)


def test_values_do_not_depend_on_what_was_before():
    optimizer, schedule = make()
    assert optimizer.param_groups[0]["lr"] == 0
    for time, expected in ((30, 0), (12, 0.21), (6, 0.105), (21, 0.105), (0, 0), (40, 0)):
        schedule.move_to(time)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]


def test_training_follows_it_batch_by_batch():
    rates = []

    class Recorder(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = StandardTraining(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.2),
        lr_scheduler=lambda optimizer: PiecewiseLinear(optimizer, [0, 1, 2], [0, 1, 0]),
    )
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, limit_train_batches=4, callbacks=[Recorder()], **options)
    trainer.fit(module, datamodule=Digits(batch_size=8))
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.15, 0.1, 0.05, 0])


@pytest.mark.parametrize(
    ("epochs", "factors", "message"),
    [
        ([], [], r"^epochs: got \[\]"),
        ([0, 2, 2], [0, 1, 0], r"^epochs: got \[0, 2, 2\]; give increasing epochs"),
        ([0, 2], [0, 1, 0], r"^factors: .*give 2 factors"),
        ([0, 2], [0, -1], r"^factors: got \[0, -1\]"),
    ],
)
def test_wrong_settings(epochs, factors, message):
    with pytest.raises(SettingError, match=message):
        make(epochs, factors)
