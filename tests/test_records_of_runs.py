"""Records say which run, weights and images a figure is of; each test is of a figure that was of others."""

import hashlib
import json
from contextlib import nullcontext

import pytest
from pytorch_lightning import Callback

import train
from callbacks.evaluation.base import Evaluation
from cli.model_card import ExportedModel, model_card
from reports.runs import read_runs
from robust.metrics import Accuracy
from tests.callbacks.trained import FILE
from tests.recorded_runs import CLEAN, write_run
from tests.small_run import SMALL
from tests.testers import QUIET, error_of, last_checkpoint, run


class Few(Evaluation):
    """Logs the clean accuracy of the first batch."""

    def __init__(self):
        super().__init__(max_test_batches=1)

    def evaluate(self, module, x, y):
        self.update("accuracy/few", Accuracy, module(x).argmax(1) == y)


class Stop(Callback):
    """Ends the training after so many epochs, which no evaluation knows before."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


ONE = "--trainer.max_epochs=1"
FGSM = "attacks: {fgsm: {attack: {class_path: robust.attacks.FGSM}}}"


def test_a_test_does_not_write_into_another_runs_folder(tmp_path, capsys):
    """Regression: any folder above the checkpoint was accepted, and the report credited the test to its run."""
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    for folder in (outer, inner):
        run("fit", [*SMALL, ONE], folder)
    where = [*QUIET, f"--ckpt_path={last_checkpoint(inner)}", "--trainer.default_root_dir"]
    error = error_of(["test", *SMALL[:1], *where, str(outer)], capsys)
    assert error.startswith(f"trainer.default_root_dir: got '{outer}'; it holds results.json of another run")
    train.main(["test", *SMALL[:1], "--trainer.callbacks=[]", *where, str(inner)])
    records = json.loads((inner / "results.json").read_text())
    assert (records["fit"]["epochs"], records["test"]["epochs"]) == (1, None)


@pytest.mark.thorough
def test_last_is_the_checkpoint_that_lightning_finds(tmp_path, capsys):
    """Regression: the word was accepted wherever the checkpoint was."""
    run("fit", [*SMALL, ONE], tmp_path / "a")
    run("fit", [*SMALL, ONE], tmp_path / "b")
    settings = ["test", *SMALL[:1], "--trainer.callbacks=[]", *QUIET, "--ckpt_path=last"]
    other = [f"--checkpoint.dirpath={tmp_path / 'a' / 'checkpoints'}", f"--trainer.default_root_dir={tmp_path / 'b'}"]
    assert "it holds results.json of another run" in error_of([*settings, *other], capsys)
    train.main([*settings, f"--trainer.default_root_dir={tmp_path / 'b'}"])
    record = json.loads((tmp_path / "b" / "results.json").read_text())["test"]
    assert record["checkpoint"] == str(last_checkpoint(tmp_path / "b"))


def test_tests_before_a_resumed_training_are_not_of_its_weights(tmp_path):
    """Regression: they were shown beside the resumed training's settings and cost."""
    path = write_run(tmp_path / "run", metrics={"test/accuracy/clean": 0.1}) / "results.json"
    records = json.loads(path.read_text())
    resumed = records["fit"] | {"metrics": {"val/accuracy/clean": 0.9}}
    path.write_text(json.dumps(records | {"fit-2": resumed}))
    (resumed_run,) = read_runs([tmp_path])
    assert resumed_run.metrics == {"val/accuracy/clean": 0.9}
    assert resumed_run.evaluations == []
    path.write_text(json.dumps(records | {"fit-2": resumed, "test-2": records["test"]}))
    (tested,) = read_runs([tmp_path])
    assert tested.metrics == {"val/accuracy/clean": 0.9, "test/accuracy/clean": 0.1}


def test_a_test_before_the_first_record_of_a_training_is_not_of_its_weights(tmp_path):
    """Regression: a test of a stopped training, which records nothing, was shown as the result of the resumed one."""
    path = write_run(tmp_path / "run", metrics={CLEAN: 0.1}) / "results.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps({"test": records["test"], "fit": records["fit"] | {"metrics": {}}}))
    (run,) = read_runs([tmp_path])
    assert (run.metrics, run.evaluations) == ({}, [])


@pytest.mark.filterwarnings("ignore:the last validation was at step 3 of 4")
@pytest.mark.parametrize(("steps", "epochs"), [(4, 1.33), (6, 2)])
def test_a_part_of_an_epoch_is_recorded_as_a_part(steps, epochs, tmp_path):
    """Regression: Lightning counts it as whole."""
    run("fit", [*SMALL, f"--trainer.max_steps={steps}"], tmp_path)  # epochs have 3 steps
    assert json.loads((tmp_path / "results.json").read_text())["fit"]["epochs"] == epochs


@pytest.mark.filterwarnings(
    "ignore:trainer.max_steps. got 4, and the checkpoint has 4", "ignore:the last validation was"
)
def test_a_part_of_an_epoch_stays_a_part_if_nothing_is_left_to_train(tmp_path):
    """Regression: the record of a resumed training without a step had an epoch less."""
    end = [*SMALL, "--trainer.max_steps=4"]  # epochs have 3 steps
    run("fit", end, tmp_path)
    run("fit", [*end, f"--ckpt_path={last_checkpoint(tmp_path)}"], tmp_path)
    records = json.loads((tmp_path / "results.json").read_text())
    assert {name: record["epochs"] for name, record in records.items()} == {"fit": 1.33, "fit-2": 1.33}


def test_a_record_has_the_hash_of_the_users_file(tmp_path):
    """Regression: two files that define one path were one network in reports."""
    network = "tests.callbacks.trained.Small"
    run("fit", [*SMALL, ONE, f"--model.classifier={network}"], tmp_path)
    expected = hashlib.sha256(FILE.with_name("trained.py").read_bytes()).hexdigest()[:12]
    assert json.loads((tmp_path / "results.json").read_text())["fit"]["own_code"] == {network: expected}


def test_a_model_card_has_no_tests_of_weights_that_trained_on():
    """Regression: they stood there as those at the end of the training."""
    record = {"config": {}, "metrics": {CLEAN: 0.2}, "commit": "a", "seed": 0, "device": "cpu"}
    records = {"fit": record, "test": record, "test-2": record | {"checkpoint": "runs/epoch=3.ckpt"}}
    resumed = {"fit-2": record, "test-3": record | {"metrics": {CLEAN: 0.4}}}
    about = {"method": "TRADES", "data": "Digits", "image_shape": (1, 28, 28), "num_classes": 10, "license": None}
    card = model_card(ExportedModel("last.onnx", settings={}, records=records | resumed, notes=[], **about))
    assert [name for name in (*records, *resumed) if f"`{name}`, weights" in card] == ["test-2", "fit-2", "test-3"]


def test_a_trainings_record_has_the_metrics_of_its_last_validation(tmp_path):
    """Regression: those of an evaluation two epochs before stood beside them."""
    attack = f"{{class_path: AdversarialEvaluation, init_args: {{every_n_epochs: 2, {FGSM}}}}}"
    for epochs, attacked in ((3, False), (2, True)):
        folder = tmp_path / str(epochs)
        stop = f"{{class_path: {__name__}.Stop, init_args: {{epochs: {epochs}}}}}"
        run("fit", [*SMALL, f"--trainer.callbacks=[{attack}, {stop}]", "--trainer.max_epochs=9"], folder)
        metrics = json.loads((folder / "results.json").read_text())["fit"]["metrics"]
        assert "val/accuracy/clean" in metrics
        assert ("val/accuracy/union" in metrics) == attacked


def test_intervals_are_of_metrics_on_all_tested_images(tmp_path):
    """Regression: the accuracy of 10 images had the interval of 250."""
    run("fit", [*SMALL, ONE], tmp_path)
    few = f"--trainer.callbacks={__name__}.Few"
    data = ["--data.test_images=250", "--data.eval_batch_size=10"]
    where = [*QUIET, f"--ckpt_path={last_checkpoint(tmp_path)}", f"--trainer.default_root_dir={tmp_path}"]
    train.main(["test", *SMALL[:1], few, *data, *where])
    record = json.loads((tmp_path / "results.json").read_text())["test"]
    assert "test/accuracy/few" in record["metrics"]
    assert list(record["intervals"]) == ["test/accuracy/clean"]


@pytest.mark.parametrize("name", ["run [v2]", "x[/b]"])
def test_brackets_in_a_folders_name_are_printed(name, tmp_path, capsys):
    """Regression: they were markup; the second ended the run with a traceback."""
    run("fit", [*SMALL, ONE], tmp_path / name)
    assert f"{name}/results.json" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(("epochs", "recorded"), [(2, True), (3, False)])
def test_a_record_of_a_training_has_no_metrics_of_earlier_weights(tmp_path, epochs, recorded):
    """Regression: those of a validation before the last epochs stood beside the last weights."""
    settings = [*SMALL, f"--trainer.max_epochs={epochs}", "--trainer.check_val_every_n_epoch=2"]
    message = (
        "the last validation was at step .*: its metrics are not those of the last weights, and not in results.json"
    )
    with nullcontext() if recorded else pytest.warns(UserWarning, match=message):
        run("fit", settings, tmp_path)
    metrics = json.loads((tmp_path / "results.json").read_text())["fit"]["metrics"]
    assert ("val/accuracy/clean" in metrics) == recorded
    assert "train/loss" in metrics
