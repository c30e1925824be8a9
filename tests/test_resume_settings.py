"""If config and checkpoint differ, a resumed run is refused, or uses the chosen settings."""

import json

import pytest
import torch

from datamodules import Digits
from datamodules.loading import TensorImages
from tests.small_run import SMALL
from tests.testers import last_checkpoint, run

STEP = "{class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.25}}"
MULTI = "{class_path: torch.optim.lr_scheduler.MultiStepLR, init_args: {milestones: [1, 3]}}"
ADAM = "{class_path: torch.optim.Adam, init_args: {lr: 0.003}}"


class HalfOfDigits(Digits):
    """Fewer training images."""

    def load(self, split):
        whole = super().load(split)
        return whole if split != "train" else TensorImages(whole.images[::2], whole.labels[::2], 10)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    run("fit", [*SMALL, "--trainer.max_epochs=2"], folder)
    return last_checkpoint(folder)


def refused(settings, folder, capsys):
    with pytest.raises(SystemExit) as end:
        run("fit", [*SMALL, *settings], folder)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.init_args.weight_decay=0.5", "settings.0.weight_decay: got 0.5; the checkpoint has"),
        ("optimizer.init_args.lr=0.5", "settings.0.lr: got 0.5; the checkpoint has"),
        ("optimizer.init_args.momentum=0.1", "settings.0.momentum: got 0.1; the checkpoint has 0.9"),
        ("lr_scheduler.gamma=0.9", "schedule.gamma: got 0.9; the checkpoint has 0.5"),
        (f"lr_scheduler={MULTI}", "schedule.class: got 'torch.optim.lr_scheduler.MultiStepLR'; the checkpoint has"),
        (f"optimizer={ADAM}", "class: got 'torch.optim.adam.Adam'; the checkpoint has 'torch.optim.sgd.SGD'"),
        ("lr_scheduler=null", "schedule: got None; the checkpoint has"),
    ],
)
def test_another_optimizer_or_schedule_is_refused(first, change, message, tmp_path, capsys):
    error = refused([f"--ckpt_path={first}", f"--model.{change}"], tmp_path, capsys)
    assert f"error: model optimizers.0.{message}" in error
    assert "set resume_settings to checkpoint (use the old) or config (use the new)" in error
    assert not last_checkpoint(tmp_path).exists()


def test_the_checkpoints_settings_are_used_and_recorded(first, tmp_path):
    plain, _ = run("fit", [*SMALL, f"--ckpt_path={first}"], tmp_path / "plain")
    changed = ["--model.optimizer.init_args.weight_decay=0.5", "--model.lr_scheduler.gamma=0.9"]
    arguments = [*SMALL, f"--ckpt_path={first}", *changed, "--resume_settings=checkpoint"]
    checkpoint, results = run("fit", arguments, tmp_path / "resumed")
    for name, weight in plain["state_dict"].items():
        assert torch.equal(checkpoint["state_dict"][name], weight)
    (used,) = results["optimizers"]
    assert used["settings"][0]["weight_decay"] == plain["optimizer_states"][0]["param_groups"][0]["weight_decay"] != 0.5
    assert used["schedule"]["gamma"] == 0.5
    assert results["config"]["model"]["init_args"]["optimizer"]["init_args"]["weight_decay"] == 0.5


def test_the_configured_settings_are_used_and_recorded(first, tmp_path):
    changed = ["--model.optimizer.init_args.weight_decay=0.5", f"--model.lr_scheduler={STEP}"]
    taken = [*SMALL, f"--ckpt_path={first}", *changed, "--resume_settings=config"]
    checkpoint, results = run("fit", taken, tmp_path)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert group["weight_decay"] == 0.5
    assert group["lr"] == pytest.approx(group["initial_lr"] * 0.25**3)  # in the last of four epochs
    assert results["optimizers"][0]["schedule"]["gamma"] == 0.25
    again = [*SMALL, f"--ckpt_path={last_checkpoint(tmp_path)}", "--trainer.max_epochs=5", *changed]
    assert run("fit", again, tmp_path / "again")[0]["epoch"] == 4  # the new checkpoint has the settings that were used


@pytest.mark.thorough
def test_another_optimizer_starts_afresh(first, tmp_path, capsys):
    adam = [*SMALL, f"--ckpt_path={first}", f"--model.optimizer={ADAM}", "--resume_settings=config"]
    checkpoint, results = run("fit", adam, tmp_path)
    assert results["optimizers"][0]["class"] == "torch.optim.adam.Adam"
    assert {int(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()} == {6}
    error = refused([*adam[len(SMALL) : -1], "--resume_settings=checkpoint"], tmp_path / "no", capsys)
    assert "configure that class, or set resume_settings to config" in error


@pytest.mark.thorough
def test_other_data_are_refused(first, tmp_path, capsys):
    other = ["--data.class_path=datamodules.Digits", "--data.init_args.num_workers=0"]
    run("fit", [*SMALL, f"--ckpt_path={first}", *other], tmp_path / "same")
    other = [f"--data.class_path={__name__}.HalfOfDigits"]
    error = refused([f"--ckpt_path={first}", *other], tmp_path / "other", capsys)
    assert "HalfOfDigits'; the checkpoint has 'datamodules.digits.Digits'" in error or "data.train_images" in error
    run("fit", [*SMALL, f"--ckpt_path={first}", *other, "--resume_settings=config"], tmp_path / "config")


def test_an_old_checkpoint_is_described_by_its_states(first, tmp_path, capsys):
    checkpoint = torch.load(first, weights_only=True)
    for name in ("optimizers", "data", "monitored"):
        del checkpoint[name]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    old = f"--ckpt_path={tmp_path / 'old.ckpt'}"
    run("fit", [*SMALL, old], tmp_path / "same")
    error = refused([old, "--model.optimizer.init_args.weight_decay=0.5"], tmp_path / "other", capsys)
    assert "settings.0.weight_decay: got 0.5" in error


def test_a_training_that_is_complete_is_warned_of(first, tmp_path):
    with pytest.warns(UserWarning, match="trainer.max_epochs: got 2, and the checkpoint has 2; this run trains no"):
        run("fit", [*SMALL, "--trainer.max_epochs=2", f"--ckpt_path={first}"], tmp_path)


def test_a_resumed_run_keeps_its_seed_and_records_it(first, tmp_path):
    """Regression: the record had the seed of the command, so that one training counted as several seeds."""
    with pytest.warns(UserWarning, match=r"seed_everything: got 3; a resumed training keeps its seed, 0"):
        run("fit", [*SMALL, f"--ckpt_path={first}", "--seed_everything=3"], tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["fit"]["seed"] == 0
