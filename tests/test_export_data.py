"""Exports with other data than those of the training: cards say what was measured, other classes are refused."""

import shutil

import numpy as np
import pytest

import train
from tests.datamodules.pictures import write_classes
from tests.small_run import SMALL

QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
FEW = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--test_after_fit=false"]


def write_noise(path):
    draws = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = draws.integers(0, 256, (20, 1, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(20) % 10
    np.savez(path, **arrays)


@pytest.mark.thorough
def test_a_card_names_the_training_data_and_the_images_of_each_test(tmp_path):
    """Regression: tests on other data, or on some images, stood there as the model's results."""
    folder = [f"--trainer.default_root_dir={tmp_path / 'run'}", *QUIET]
    checkpoint = f"--ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    write_noise(tmp_path / "noise.npz")
    noise = ["--data=Arrays", f"--data.path={tmp_path / 'noise.npz'}", "--data.eval_batch_size=5"]
    train.main(["fit", *SMALL, *FEW, *folder])
    train.main(["test", *SMALL, *folder, checkpoint, *noise, "--trainer.limit_test_batches=2"])
    train.main(["export", *SMALL, *folder, checkpoint, *noise, "--to=safetensors"])
    card = (tmp_path / "run" / "export" / "last.md").read_text()
    assert "of robust-lightning trained on `Digits`" in card
    assert "datasets:\n- Digits" in card
    assert "`test`, weights: `last.ckpt`. Data: `Arrays`, images: test 10. Commit" in card


@pytest.mark.thorough
@pytest.mark.parametrize("to", ["vnnlib", "safetensors"])
def test_data_of_other_classes_are_refused(to, tmp_path, capsys):
    """Regression: properties were of the wrong classes."""
    root = write_classes(tmp_path / "fruit", {"birne": 20, "kiwi": 20})
    common = ["--data=ImageFolder", f"--data.root={root}", "--data.image_size=12", "--data.batch_size=4", *QUIET]
    common += ["--model=StandardTraining", "--model.classifier=robust.networks.DMSmall", "--trainer.accelerator=cpu"]
    common += [f"--trainer.default_root_dir={tmp_path / 'run'}"]
    train.main(["fit", *common, *FEW])
    checkpoint = f"--ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    order = "--data.class_names=[kiwi, birne]"
    with pytest.raises(SystemExit):
        train.main(["export", *common, checkpoint, order, f"--to={to}", "--epsilon=0.1", "--indices=[0]"])
    error = (
        "error: data.class_names: got ['kiwi', 'birne']; the checkpoint was trained with the classes ['birne', 'kiwi']"
    )
    assert error in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "export", ignore_errors=True)
    train.main(["export", *common, checkpoint, f"--to={to}", "--epsilon=0.1", "--indices=[0]"])
