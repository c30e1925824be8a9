"""Checkpoints of runs whose folder was moved, and of runs that were given one folder."""

import shutil

import pytest
import torch

import train
from tests.small_run import SMALL

FIT = ["fit", *SMALL, "--trainer.logger=false", "--test_after_fit=false", "--trainer.enable_progress_bar=false"]
BEST = ["--checkpoint.monitor=val/accuracy/clean", "--checkpoint.mode=max"]


def fit(folder, *settings):
    train.main([*FIT, f"--trainer.default_root_dir={folder}", *settings])


def epochs(path):
    return torch.load(path, weights_only=True)["epoch"] + 1


@pytest.mark.parametrize("start", ["last", "epoch=0"])
def test_last_is_the_last_step_after_the_folder_was_moved(start, tmp_path):
    """Regression: last.ckpt stayed as it was, and an experiment tested its weights."""
    fit(tmp_path / "old", "--trainer.max_epochs=1")
    shutil.move(tmp_path / "old", tmp_path / "new")
    checkpoints = tmp_path / "new" / "checkpoints"
    fit(tmp_path / "new", "--trainer.max_epochs=2", f"--ckpt_path={checkpoints / start}.ckpt")
    assert {path.name for path in checkpoints.iterdir()} - {"epoch=0.ckpt"} == {"epoch=1.ckpt", "last.ckpt"}
    assert epochs(checkpoints / "last.ckpt") == 2


def test_the_best_checkpoint_is_known_after_the_folder_was_moved(tmp_path):
    fit(tmp_path / "old", "--trainer.max_epochs=3", *BEST)
    saved = torch.load(tmp_path / "old" / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (each for name, each in saved["callbacks"].items() if name.startswith("Checkpoint"))
    shutil.move(tmp_path / "old", tmp_path / "new")
    checkpoints = tmp_path / "new" / "checkpoints"
    worse = ["--model.optimizer.lr=0.0", "--resume_settings=config"]
    fit(tmp_path / "new", "--trainer.max_epochs=4", *BEST, *worse, f"--ckpt_path={checkpoints / 'last.ckpt'}")
    saved = torch.load(checkpoints / "last.ckpt", weights_only=True)
    (now,) = (each for name, each in saved["callbacks"].items() if name.startswith("Checkpoint"))
    assert now["dirpath"] == str(checkpoints)
    assert now["best_model_score"] >= state["best_model_score"]
    assert len([path for path in checkpoints.iterdir() if path.name != "last.ckpt"]) == 1


def test_two_runs_have_no_folder_of_checkpoints_in_common(tmp_path, capsys):
    """Regression: the second run's last checkpoint was last-v1.ckpt, and last.ckpt was the first run's."""
    shared = f"--checkpoint.dirpath={tmp_path / 'shared'}"
    fit(tmp_path / "a", shared, "--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        fit(tmp_path / "b", shared, "--trainer.max_epochs=1")
    error = (
        f"error: checkpoint.dirpath: got '{tmp_path / 'shared'}'; it holds epoch=0.ckpt of another run; give an empty"
    )
    assert error in capsys.readouterr().err
    train.main(["test", *SMALL, shared, f"--trainer.default_root_dir={tmp_path / 'c'}", "--trainer.logger=false"])
    fit(tmp_path / "d", shared, "--trainer.max_epochs=2", f"--ckpt_path={tmp_path / 'shared' / 'last.ckpt'}")
    assert epochs(tmp_path / "shared" / "last.ckpt") == 2
