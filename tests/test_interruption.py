"""Runs that a limit or a signal stops inside an epoch resume as if they had not stopped."""

import json
import os
import signal
import time

import pytest
import torch
from pytorch_lightning import Callback

import train
from callbacks import InterruptedRunError
from tests.programs import Program
from tests.small_run import SMALL
from tests.testers import QUIET, assert_ends_equal, last_checkpoint, outcome, run

LINK = "--checkpoint.save_last=link"


class SignalAt(Callback):
    """Sends a signal to the process in a training or validation batch."""

    def __init__(self, signum: int, batch: int, validating: bool = False) -> None:
        self.signum, self.batch, self.validating = signum, batch, validating

    def on_train_batch_start(self, trainer, *_):
        if not self.validating and trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.signum)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, *_):
        if self.validating and trainer.global_step == self.batch and batch_idx == 0:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run("fit", SMALL, tmp_path_factory.mktemp("whole"))


class StopAt(Callback):
    """Ends the training behind a batch, as early stopping does."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.fit_loop.epoch_loop.total_batch_idx == self.batch


class Slowly(Callback):
    """Waits in each batch."""

    def on_train_batch_start(self, *_):
        time.sleep(0.3)


@pytest.mark.thorough_but("max_time")
@pytest.mark.parametrize(
    "stop",
    [
        [f"--trainer.callbacks+={__name__}.StopAt", "--trainer.callbacks.batch=4"],
        [f"--trainer.callbacks+={__name__}.Slowly", "--trainer.max_time=00:00:00:01"],
    ],
    ids=["should_stop", "max_time"],
)
def test_a_run_that_stops_inside_an_epoch_continues_there(whole, stop, tmp_path):
    checkpoint, _ = run("fit", [*SMALL, *stop], tmp_path / "stopped")
    assert 0 < checkpoint["global_step"] < whole[0]["global_step"]
    end, _ = run("fit", [*SMALL, f"--ckpt_path={last_checkpoint(tmp_path / 'stopped')}"], tmp_path / "end")
    assert_ends_equal(end, whole[0])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "limits", [*(pytest.param(each, marks=pytest.mark.slow) for each in ([5], [11])), [4, 8], [6]], ids=str
)
@pytest.mark.filterwarnings("ignore:the last validation was at step")
def test_a_run_that_max_steps_stops_resumes_at_its_batch(whole, limits, tmp_path):
    resume = []
    for limit in limits:
        checkpoint, _ = run("fit", [*SMALL, *resume, f"--trainer.max_steps={limit}"], tmp_path / str(limit))
        assert checkpoint["global_step"] == limit
        resume = [f"--ckpt_path={last_checkpoint(tmp_path / str(limit))}"]
    end, results = run("fit", [*SMALL, *resume], tmp_path / "end")
    assert_ends_equal(end, whole[0])
    assert results["metrics"] == whole[1]["metrics"]
    again = [*SMALL, f"--ckpt_path={last_checkpoint(tmp_path / 'end')}"]
    with pytest.warns(UserWarning, match="this run trains nothing"):
        assert run("fit", again, tmp_path / "again")[0] is None  # no steps remain


@pytest.mark.thorough_but("4-False-15")
@pytest.mark.parametrize(
    ("batch", "validating", "signum"),
    [
        *((batch, batch in (6, 12), signal.SIGTERM) for batch in (4, 5, 6, 11, 12)),
        (4, False, signal.SIGINT),
        *(pytest.param(n, n in (6, 12), signal.SIGINT, marks=pytest.mark.slow) for n in (5, 6, 11, 12)),
    ],
)
def test_a_run_that_a_signal_stops_resumes_at_its_batch(whole, signum, batch, validating, tmp_path):
    stop = [f"--trainer.callbacks+={__name__}.SignalAt", f"--trainer.callbacks.signum={int(signum)}"]
    stop += [f"--trainer.callbacks.batch={batch}", f"--trainer.callbacks.validating={str(validating).lower()}"]
    before = signal.getsignal(signum)
    with pytest.raises(InterruptedRunError) as end:
        run("fit", [*SMALL, *stop, "--test_after_fit=true"], tmp_path / "stopped")
    assert end.value.code == 128 + signum
    assert signal.getsignal(signum) == before
    saved = torch.load(last_checkpoint(tmp_path / "stopped"), weights_only=True)
    assert saved["global_step"] == (batch if validating else batch + 1)
    resumed, results = run("fit", [*SMALL, f"--ckpt_path={last_checkpoint(tmp_path / 'stopped')}"], tmp_path / "end")
    assert_ends_equal(resumed, whole[0])
    name = "val/accuracy/clean"  # of the last validation, which is repeated
    assert results["metrics"][name] == whole[1]["metrics"][name]


class SignalAfterValidation(Callback):
    """Sends SIGTERM behind the last batch of the last validation, while its metrics are computed."""

    def on_validation_epoch_end(self, trainer, *_):
        if trainer.current_epoch + 1 == trainer.max_epochs:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_at_the_end_of_the_training_stops_the_run_before_its_test(tmp_path):
    """Regression: it was announced, but the test ran, and the status was 0."""
    stop = [f"--trainer.callbacks+={__name__}.SignalAfterValidation", "--test_after_fit=true"]
    with pytest.raises(InterruptedRunError) as end:
        run("fit", [*SMALL, *stop], tmp_path)
    assert end.value.code == 143
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["fit"], "the training has ended"


class FailAt(Callback):
    """Fails in an epoch, as a machine does."""

    def on_train_epoch_start(self, trainer, *_):
        if trainer.current_epoch == 2:
            raise RuntimeError("power cut")


def test_epochs_without_validation_are_saved(tmp_path):
    """Regression: a training that was killed before its first validation had no checkpoint."""
    rare = ["--trainer.check_val_every_n_epoch=5", f"--trainer.callbacks+={__name__}.FailAt"]
    with pytest.raises(RuntimeError, match="power cut"):
        run("fit", [*SMALL, *rare], tmp_path)
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["epoch"] == 1


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:the last validation was at step")
@pytest.mark.parametrize("rare", ["check_val_every_n_epoch=2", "val_check_interval=2"])
def test_a_link_to_the_last_checkpoint_is_of_the_last_step(rare, tmp_path):
    """Regression: it was a link to the checkpoint of the last validation, and the training since was lost."""
    checkpoint, _ = run("fit", [*SMALL, f"--trainer.{rare}", "--trainer.max_epochs=3", LINK], tmp_path / "rare")
    assert checkpoint["global_step"] == 9
    checkpoint, _ = run("fit", [*SMALL, "--trainer.max_epochs=1", LINK], tmp_path / "saved")
    assert checkpoint["global_step"] == 3
    assert last_checkpoint(tmp_path / "saved").is_symlink()


def test_a_stopped_run_saves_where_it_keeps_no_last_checkpoint(tmp_path):
    stop = [f"--trainer.callbacks+={__name__}.SignalAt", f"--trainer.callbacks.signum={int(signal.SIGTERM)}"]
    with pytest.raises(InterruptedRunError):
        run("fit", [*SMALL, *stop, "--trainer.callbacks.batch=4", "--checkpoint.save_last=false"], tmp_path)
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 5


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_an_evaluation_stops_at_once(subcommand, tmp_path):
    stop = [f"--trainer.callbacks+={__name__}.SignalInEvaluation"]
    with pytest.raises(InterruptedRunError) as end:
        run(subcommand, [*SMALL, *stop], tmp_path)
    assert end.value.code == 143


class SignalInEvaluation(Callback):
    """Sends SIGTERM in the first batch of an evaluation."""

    def on_test_batch_start(self, *_):
        os.kill(os.getpid(), signal.SIGTERM)

    on_validation_batch_start = on_test_batch_start


@pytest.mark.thorough
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_program_exits_with_the_signals_status(signum, code, tmp_path):
    long = ["--trainer.max_epochs=10000", "--trainer.limit_val_batches=0", f"--trainer.default_root_dir={tmp_path}"]
    program = Program(["fit", *SMALL, *QUIET, *long, "--checkpoint.every_n_epochs=1"], tmp_path)
    while not last_checkpoint(tmp_path).exists():
        assert program.process.is_alive()
        time.sleep(0.1)
    os.kill(program.process.pid, signum)
    assert program.wait(60) == code
    checkpoint, _ = torch.load(last_checkpoint(tmp_path), weights_only=True), None
    assert checkpoint["global_step"] >= 3


def test_an_interruption_that_nothing_handles_is_one_line(monkeypatch, capsys):
    """A second signal while a checkpoint is written, or the first one before the training."""

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "RobustCLI", interrupted)
    with pytest.raises(SystemExit) as end:
        train.main([])
    assert end.value.code == 130
    assert capsys.readouterr().err == "Stopped at once; checkpoints that were complete remain\n"


class LossOfNaN(Callback):
    """Makes the weights NaN before a batch."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 7:
            for parameter in module.parameters():
                parameter.data.fill_(torch.nan)


def test_a_loss_of_nan_leaves_the_last_checkpoint(tmp_path):
    nan = [f"--trainer.callbacks+={__name__}.LossOfNaN", "--checkpoint.save_on_exception=true"]
    with pytest.raises(SystemExit) as end:
        run("fit", [*SMALL, *nan], tmp_path)
    assert end.value.code == 2
    checkpoint = torch.load(last_checkpoint(tmp_path), weights_only=True)
    assert checkpoint["global_step"] == 6
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


@pytest.mark.thorough
def test_a_time_interval_saves_and_so_does_the_end(tmp_path):
    every = ["--checkpoint.train_time_interval=0:0:0", "--checkpoint.filename={step}", "--checkpoint.save_top_k=-1"]
    run("fit", [*SMALL, *every], tmp_path / "time")
    assert len(list((tmp_path / "time" / "checkpoints").glob("step=*.ckpt"))) == 12
    checkpoint, _ = run("fit", [*SMALL, "--checkpoint.every_n_train_steps=7"], tmp_path / "steps")
    assert checkpoint["global_step"] == 12
    assert_ends_equal(checkpoint, outcome(tmp_path / "time")[0])


def test_a_longer_training_resumes_from_the_final_checkpoint(whole, tmp_path):
    run("fit", [*SMALL, "--trainer.max_epochs=2", "--checkpoint.every_n_train_steps=100"], tmp_path / "short")
    resumed, _ = run("fit", [*SMALL, f"--ckpt_path={last_checkpoint(tmp_path / 'short')}"], tmp_path / "long")
    assert_ends_equal(resumed, whole[0])


@pytest.mark.thorough
def test_the_time_of_a_resumed_training_counts_from_its_first_start(tmp_path):
    run("fit", [*SMALL, "--trainer.max_epochs=1"], tmp_path / "short")
    path = last_checkpoint(tmp_path / "short")
    checkpoint = torch.load(path, weights_only=True)
    assert 0 < checkpoint["callbacks"]["Results"]["seconds"] < 1000
    checkpoint["callbacks"]["Results"]["seconds"] += 1000
    torch.save(checkpoint, path)
    _, results = run("fit", [*SMALL, f"--ckpt_path={path}"], tmp_path / "long")
    assert 1000 < results["wall_time"] < 2000
    few = [setting for setting in SMALL if "test_after_fit" not in setting]
    _, results = run("test", [*few, f"--ckpt_path={path}"], tmp_path / "test")
    assert results["wall_time"] < 1000, "a test has its own time"


def die_while_saving():
    """Let the process end when a checkpoint is half written."""
    save = torch.save

    def killed(checkpoint, path):
        save(checkpoint, path)
        os.truncate(path, 1000)
        os._exit(9)

    torch.save = killed


@pytest.mark.thorough
def test_a_killed_writer_leaves_the_target_and_one_file_that_the_next_run_removes(tmp_path, monkeypatch):
    run("fit", [*SMALL, "--trainer.max_epochs=1"], tmp_path)
    before = last_checkpoint(tmp_path).read_bytes()
    resume = [*SMALL, *QUIET, f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={last_checkpoint(tmp_path)}"]
    assert Program(["fit", *resume], tmp_path, before=die_while_saving).wait() == 9
    assert last_checkpoint(tmp_path).read_bytes() == before
    assert len(list((tmp_path / "checkpoints").glob("*.unfinished"))) == 1
    run("fit", [*SMALL, f"--ckpt_path={last_checkpoint(tmp_path)}"], tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*.unfinished"))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    run("fit", [*SMALL, "--trainer.max_epochs=1"], tmp_path)
    before = last_checkpoint(tmp_path).read_bytes()

    def full(checkpoint, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SystemExit) as end:
        run("fit", [*SMALL, f"--ckpt_path={last_checkpoint(tmp_path)}"], tmp_path)
    assert end.value.code == 2
    assert "it cannot be written: PytorchStreamWriter failed" in capsys.readouterr().err
    assert last_checkpoint(tmp_path).read_bytes() == before
    assert not list((tmp_path / "checkpoints").glob("*.unfinished"))


def test_a_filename_stays_in_its_folder(tmp_path, capsys):
    for name in ("../outside", "/tmp/outside", "a/../../outside"):
        with pytest.raises(SystemExit):
            run("fit", [*SMALL, f"--checkpoint.filename={name}"], tmp_path)
        assert f"checkpoint.filename: got '{name}'; give a name inside" in capsys.readouterr().err


def test_a_run_leaves_no_handler_of_signals(tmp_path):
    """A handler would keep the trainer and all that it holds in memory, run behind run."""
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    run("fit", [*SMALL, "--trainer.max_epochs=1"], tmp_path)
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before
