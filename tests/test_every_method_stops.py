"""Every method passes the checks of tests/test_interruption.py, test_resume_settings.py and test_rates.py."""

import signal
from typing import ClassVar

import pytest
import torch
from pytorch_lightning import Callback

from callbacks import InterruptedRunError
from tests.every_method import METHODS, settings_of
from tests.test_interruption import SignalAt, StopAt
from tests.testers import assert_ends_equal, last_checkpoint, run

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("method", METHODS)]
STOP = 7  # of 15 steps: after the first batch of the third epoch
SCHEDULE = ["--model.lr_scheduler={class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {gamma: 0.5}}"]


@pytest.fixture(scope="module")
def wholes():
    """Final checkpoints of uninterrupted trainings, by method."""
    return {}


@pytest.fixture
def settings(method, tmp_path):
    return [*settings_of(method, tmp_path), *SCHEDULE]


@pytest.fixture
def whole(method, wholes, settings, tmp_path):
    if method not in wholes:
        wholes[method], _ = run("fit", settings, tmp_path / "whole")
    return wholes[method]


def stopped_by(signum):
    return [
        f"--trainer.callbacks+={SignalAt.__module__}.SignalAt",
        f"--trainer.callbacks.signum={int(signum)}",
        f"--trainer.callbacks.batch={STOP - 1}",
    ]


def test_max_steps_inside_an_epoch(settings, whole, tmp_path):
    stopped, _ = run("fit", [*settings, f"--trainer.max_steps={STOP}"], tmp_path / "stopped")
    assert stopped["global_step"] == STOP
    twice = [*settings, f"--ckpt_path={last_checkpoint(tmp_path / 'stopped')}", f"--trainer.max_steps={STOP + 1}"]
    run("fit", twice, tmp_path / "twice")
    end, _ = run("fit", [*settings, f"--ckpt_path={last_checkpoint(tmp_path / 'twice')}"], tmp_path / "end")
    assert_ends_equal(end, whole)


@pytest.mark.filterwarnings("ignore:epsilon_schedule.length")  # of a run that is stopped in its ramp
def test_a_stop_inside_an_epoch(settings, whole, tmp_path):
    stop = [f"--trainer.callbacks+={StopAt.__module__}.StopAt", f"--trainer.callbacks.batch={STOP - 1}"]
    stopped, _ = run("fit", [*settings, *stop], tmp_path / "stopped")
    assert stopped["global_step"] == STOP
    end, _ = run("fit", [*settings, f"--ckpt_path={last_checkpoint(tmp_path / 'stopped')}"], tmp_path / "end")
    assert_ends_equal(end, whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals(signum, settings, whole, tmp_path):
    with pytest.raises(InterruptedRunError) as stop:
        run("fit", [*settings, *stopped_by(signum)], tmp_path / "stopped")
    assert stop.value.code == 128 + signum
    assert torch.load(last_checkpoint(tmp_path / "stopped"), weights_only=True)["global_step"] == STOP
    end, _ = run("fit", [*settings, f"--ckpt_path={last_checkpoint(tmp_path / 'stopped')}"], tmp_path / "end")
    assert_ends_equal(end, whole)


class WeightsOfNaN(Callback):
    """Makes all weights NaN before a batch."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == STOP:
            for parameter in module.parameters():
                parameter.data.fill_(torch.nan)


def test_nan_leaves_the_last_checkpoint(settings, tmp_path):
    nan = [f"--trainer.callbacks+={__name__}.WeightsOfNaN", "--checkpoint.save_on_exception=true"]
    with pytest.raises(SystemExit) as stop:
        run("fit", [*settings, *nan, "--checkpoint.every_n_train_steps=3"], tmp_path)
    assert stop.value.code == 2
    checkpoint = torch.load(last_checkpoint(tmp_path), weights_only=True)
    assert checkpoint["global_step"] == 6
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_a_write_that_fails_leaves_the_last_checkpoint(settings, whole, tmp_path, monkeypatch):
    run("fit", [*settings, f"--trainer.max_steps={STOP}"], tmp_path)
    before = last_checkpoint(tmp_path).read_bytes()
    resume = [*settings, f"--ckpt_path={last_checkpoint(tmp_path)}"]

    def full(checkpoint, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(SystemExit):
            run("fit", resume, tmp_path)
    assert last_checkpoint(tmp_path).read_bytes() == before
    end, _ = run("fit", resume, tmp_path)
    assert_ends_equal(end, whole)
    assert not list((tmp_path / "checkpoints").glob("*.unfinished"))


def test_saving_by_time_and_by_steps_saves_the_final_weights(settings, whole, tmp_path):
    always = ["--checkpoint.train_time_interval=0:0:0", "--checkpoint.filename={step}", "--checkpoint.save_top_k=-1"]
    by_time, _ = run("fit", [*settings, *always], tmp_path / "time")
    assert len(list((tmp_path / "time" / "checkpoints").glob("step=*.ckpt"))) == 15
    by_steps, _ = run("fit", [*settings, "--checkpoint.every_n_train_steps=7"], tmp_path / "steps")
    for end in (by_time, by_steps):
        assert_ends_equal(end, whole)


def test_other_settings_are_refused_or_chosen(settings, whole, tmp_path, capsys):
    run("fit", [*settings, f"--trainer.max_steps={STOP}"], tmp_path / "stopped")
    resume = [*settings, f"--ckpt_path={last_checkpoint(tmp_path / 'stopped')}"]
    other = ["--model.optimizer.init_args.weight_decay=0.25", "--model.lr_scheduler.init_args.gamma=0.9"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("fit", [*resume, *other], tmp_path / "refused")
    error = capsys.readouterr().err
    assert "weight_decay: got 0.25; the checkpoint has" in error or "gamma: got 0.9; the checkpoint has 0.5" in error
    resumed, _ = run("fit", [*resume, *other, "--resume_settings=checkpoint"], tmp_path / "resumed")
    assert_ends_equal(resumed, whole)
    taken, results = run("fit", [*resume, *other, "--resume_settings=config"], tmp_path / "taken")
    assert 0.25 in [group["weight_decay"] for state in taken["optimizer_states"] for group in state["param_groups"]]
    assert 0.9 in [(used["schedule"] or {}).get("gamma") for used in results["optimizers"]]


class Rates(Callback):
    """Records the learning rate of the first optimizer in every batch."""

    seen: ClassVar[list[float]] = []

    def on_train_start(self, trainer, module):
        self.seen.clear()

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates(settings, schedule, folder):
    run("fit", [*settings, f"--model.lr_scheduler={schedule}", f"--trainer.callbacks+={__name__}.Rates"], folder)
    return [rate / Rates.seen[0] for rate in Rates.seen]


def test_schedules_by_epoch_and_by_step(method, tmp_path):
    settings = settings_of(method, tmp_path)
    halves = "{class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {gamma: 0.5}}"
    by_epoch = rates(settings, halves, tmp_path / "epoch")
    assert by_epoch == pytest.approx([0.5 ** (step // 3) for step in range(15)])
    each_step = f"{{class_path: robust.schedules.EachStep, init_args: {{schedule: {halves}}}}}"
    assert rates(settings, each_step, tmp_path / "step") == pytest.approx([0.5**step for step in range(15)])


class WorseAndWorse(Callback):
    """Logs a metric that gets worse with every validation."""

    def on_validation_epoch_end(self, trainer, module):
        module.log("val/wanted", 1.0 + trainer.current_epoch)


def test_a_schedule_by_a_metric_resumes(method, tmp_path):
    plateau = "{class_path: pytorch_lightning.cli.ReduceLROnPlateau, init_args: {monitor: val/wanted, patience: 0}}"
    settings = [*settings_of(method, tmp_path), "--data.eval_batch_size=16"]
    settings[settings.index("--trainer.limit_val_batches=0")] = "--trainer.limit_val_batches=1"
    settings += [f"--model.lr_scheduler={plateau}", f"--trainer.callbacks+={__name__}.WorseAndWorse"]
    whole, _ = run("fit", [*settings, f"--trainer.callbacks+={__name__}.Rates"], tmp_path / "whole")
    assert [rate / Rates.seen[0] for rate in Rates.seen] == pytest.approx(
        [1] * 6 + [0.1] * 3 + [0.01] * 3 + [0.001] * 3
    )
    run("fit", [*settings, f"--trainer.max_steps={STOP}"], tmp_path / "stopped")
    end, _ = run("fit", [*settings, f"--ckpt_path={last_checkpoint(tmp_path / 'stopped')}"], tmp_path / "end")
    assert_ends_equal(end, whole)


def test_weight_averaging(settings, tmp_path, capsys):
    swa = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
    with pytest.raises(SystemExit):
        run("fit", [*settings, *swa], tmp_path / "swa")
    assert "trainer.callbacks: got 'StochasticWeightAveraging'; it continues the training" in capsys.readouterr().err
    ema = [*settings, "--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
    whole, _ = run("fit", ema, tmp_path / "whole")
    run("fit", [*ema, f"--trainer.max_steps={STOP}"], tmp_path / "stopped")
    end, _ = run("fit", [*ema, f"--ckpt_path={last_checkpoint(tmp_path / 'stopped')}"], tmp_path / "end")
    assert_ends_equal(end, whole)
