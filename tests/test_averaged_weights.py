"""Runs whose weights are averaged resume as if they had not stopped."""

import signal
from types import SimpleNamespace

import pytest
from pytorch_lightning.callbacks import EMAWeightAveraging

import train
from callbacks import Checkpoint, InterruptedRunError, Interruption
from lightning_modules.base.inputs import end_averages_last
from tests.small_run import SMALL
from tests.testers import QUIET, assert_ends_equal, last_checkpoint, run

EMA = [*SMALL, "--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    return run("fit", EMA, tmp_path_factory.mktemp("averaged"))


@pytest.mark.thorough
def test_averaged_weights_resume_from_a_stop_in_a_validation(averaged, tmp_path):
    """Regression: the checkpoint had the averages as the weights in training."""
    stop = ["--trainer.callbacks+=tests.test_interruption.SignalAt", f"--trainer.callbacks.signum={signal.SIGTERM}"]
    stop += ["--trainer.callbacks.batch=6", "--trainer.callbacks.validating=true"]
    with pytest.raises(InterruptedRunError):
        train.main(["fit", *EMA, *stop, *QUIET, f"--trainer.default_root_dir={tmp_path}"])
    end, _ = run("fit", [*EMA, f"--ckpt_path={last_checkpoint(tmp_path)}"], tmp_path / "end")
    assert_ends_equal(end, averaged[0])


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:the last validation was at step")
@pytest.mark.parametrize("rare", ["checkpoint.every_n_epochs", "trainer.check_val_every_n_epoch"])
def test_averaged_weights_resume_from_an_end_between_two_checkpoints(averaged, rare, tmp_path):
    """Regression: the last checkpoint was written when the averages had replaced the weights."""
    run("fit", [*EMA, f"--{rare}=2", "--trainer.max_epochs=3"], tmp_path / "first")
    end, _ = run("fit", [*EMA, f"--ckpt_path={last_checkpoint(tmp_path / 'first')}"], tmp_path / "end")
    assert_ends_equal(end, averaged[0])


@pytest.mark.parametrize(
    "settings",
    [
        ["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=4", "--trainer.max_epochs=3"],
        ["--trainer.val_check_interval=00:01:00:00", "--trainer.max_epochs=3"],
        ["--trainer.val_check_interval=1", "--trainer.max_steps=8"],
        ["--trainer.check_val_every_n_epoch=2", "--trainer.max_steps=4"],
        ["--checkpoint.every_n_epochs=3", "--trainer.max_steps=6"],
    ],
    ids=["batches", "time", "steps", "steps in an epoch with a validation", "steps between two checkpoints"],
)
@pytest.mark.thorough_but("steps in an epoch with a validation", "steps between two checkpoints")
@pytest.mark.filterwarnings("ignore:the last validation was at step")
def test_averaged_weights_resume_from_an_end_without_a_validation(averaged, settings, tmp_path):
    """Regression: the checkpoint had the averages as the weights in training."""
    run("fit", [*EMA, *settings], tmp_path / "first")
    end, _ = run("fit", [*EMA, f"--ckpt_path={last_checkpoint(tmp_path / 'first')}"], tmp_path / "end")
    assert_ends_equal(end, averaged[0])


def test_averages_end_behind_evaluations_and_before_checkpoints():
    trainer = SimpleNamespace(callbacks=[EMAWeightAveraging(), Checkpoint(), EMAWeightAveraging(), Interruption()])
    end_averages_last(trainer)
    order = [type(callback).__name__ for callback in trainer.callbacks]
    assert order == ["Interruption", "EMAWeightAveraging", "EMAWeightAveraging", "Checkpoint"]
