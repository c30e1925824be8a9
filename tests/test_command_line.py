"""The command line: runs and their records."""

import csv
import json
import re

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from tests.command_line import FEW_BATCHES, QUICKSTART, run
from tests.testers import last_checkpoint, results_in


def results(folder):
    return results_in(folder / "results.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The log folder of a training with a test."""
    return run("fit", tmp_path_factory.mktemp("trained"), "--seed_everything=3", "--model.gradient_clip=null")


def test_results_have_metrics_and_settings(trained):
    record = results(trained)
    for name in ("test/accuracy/clean", "test/certified_accuracy/own_budgets", "test/certified_accuracy/linf_0.01"):
        assert 0 <= record["metrics"][name] <= 1
    assert record["metrics"]["test/certified_accuracy/linf_0.01"] <= record["metrics"]["test/accuracy/clean"]
    assert record["config"]["model"]["init_args"]["epsilon"] == 0.01
    assert record["config"]["model"]["init_args"]["gradient_clip"] is None  # its default is 8
    assert record["seed"] == 3
    assert record["samples"] == {"train": 256, "val": 200, "test": 299}, "training has 16 batches of 16"
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["device"].startswith("1 x ")
    assert record["wall_time"] > 0
    assert set(json.loads((trained / "results.json").read_text())) == {"fit", "test"}
    assert "commit" in record


def test_tensorboard_shows_curves_and_budgets(trained):
    events = EventAccumulator(str(trained), size_guidance={"images": 0}).Reload()
    curves = {"train/loss": 32, "train/epsilon": 32, "val/accuracy/clean": 2}
    curves["val/certified_accuracy/own_budgets"] = 2
    assert {name: len(events.Scalars(name)) for name in curves} == curves
    assert {"val/budgets/own_budgets", "test/budgets/own_budgets"} <= set(events.Tags()["images"])
    assert list((trained / "budgets").glob("test_own_budgets*.png"))


def test_checkpoint_does_not_override_the_command_line(trained, tmp_path):
    stored = f"--ckpt_path={last_checkpoint(trained)}"
    record = results(run("test", tmp_path, stored, "--model.epsilon=0.9"))
    assert record["config"]["model"]["init_args"]["epsilon"] == 0.9
    before, name = results(trained)["metrics"], "test/certified_accuracy/linf"
    assert record["metrics"][f"{name}_0.9"] < before[f"{name}_0.01"]
    assert record["metrics"]["test/accuracy/clean"] == before["test/accuracy/clean"]
    again = results(run("test", tmp_path, stored))["metrics"]
    assert {name: results(trained)["metrics"][name] for name in again} == again


def test_the_last_checkpoint_is_of_the_last_epoch_not_of_the_best(tmp_path):
    best = ["--checkpoint.monitor=epoch", "--checkpoint.mode=min"]  # the first
    folder = run("fit", tmp_path, *FEW_BATCHES, *best) / "checkpoints"
    epochs = {path.name: torch.load(path, weights_only=True)["epoch"] for path in folder.iterdir()}
    assert epochs == {"epoch=0.ckpt": 0, "last.ckpt": 1}


def test_validate_and_predict(trained, tmp_path, capsys):
    stored = f"--ckpt_path={last_checkpoint(trained)}"
    validated = results(run("validate", tmp_path, stored))["metrics"]
    assert validated["val/accuracy/clean"] == results(trained)["metrics"]["val/accuracy/clean"]
    assert capsys.readouterr().out.count("val/accuracy/clean") == 1  # Lightning's table is not shown beside ours
    with (run("predict", tmp_path, stored, "--trainer.callbacks=Predictions") / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    correct = sum(row["label"] == row["prediction"] for row in predictions)
    assert correct / len(predictions) == pytest.approx(results(trained)["metrics"]["test/accuracy/clean"])


@pytest.mark.thorough
def test_runs_in_the_same_folder_do_not_conflict(tmp_path):
    first = run("fit", tmp_path, *FEW_BATCHES)
    record = (first / "results.json").read_text()
    second = run("fit", tmp_path, *FEW_BATCHES, "--model.epsilon=0.03")
    assert first != second
    assert (first / "results.json").read_text() == record
    assert results(second)["config"]["model"]["init_args"]["epsilon"] == 0.03


def test_later_configs_win_setting_by_setting(tmp_path, capsys):
    later = tmp_path / "later.yaml"
    later.write_text("model: {init_args: {epsilon: 0.05, classifier: {init_args: {num_classes: 7}}}}")
    with pytest.raises(SystemExit) as stop:
        train.main(["fit", *QUICKSTART, "--config", str(later), "--model.alpha_low=0.25", "--print_config"])
    assert stop.value.code == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert (model["epsilon"], model["alpha_low"], model["alpha_high"]) == (0.05, 0.25, 1.5)
    assert model["classifier"]["init_args"]["num_classes"] == 7
    assert model["classifier"]["init_args"]["image_shape"] == [1, 28, 28]


def helped(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_help_of_a_method_fits_in_two_screens(capsys, monkeypatch):
    lines = helped(["fit", "--model.help=ContextualBudgets"], capsys, monkeypatch)
    assert len(lines) <= 116
    text = " ".join(line.strip() for line in lines)
    assert "known subclasses: robust.networks." in text
    assert re.search(r"known subclasses: [^)]* and \d+ more\)", text)


def test_help_starts_with_an_example(capsys, monkeypatch):
    lines = helped(["--help"], capsys, monkeypatch)
    assert lines[0].startswith("example")
    assert "train.py fit --config configs/quickstart.yaml" in lines[2]
    assert any(line.startswith("usage: ") for line in lines)


def test_one_batch_is_not_all_of_them_whichever_type_comes_first(monkeypatch, tmp_path):
    """The order in a union of types is that of the first package of the process that wrote it."""
    monkeypatch.setitem(Trainer.__init__.__annotations__, "limit_train_batches", float | int | None)
    folder = run("fit", tmp_path, "--trainer.limit_train_batches=1", "--trainer.max_epochs=1", "--trainer.callbacks=[]")
    assert torch.load(last_checkpoint(folder), weights_only=True)["global_step"] == 1
