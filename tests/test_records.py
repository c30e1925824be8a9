"""The record of a run: its own folder, complete and strict files, no files of a dry run, existing monitors."""

import json
import math
import shlex

import pytest
import torch
import yaml
from pytorch_lightning import Callback

from callbacks.results import add_record
from tests.programs import Program
from tests.small_run import SMALL
from tests.testers import QUIET, ROOT, assert_equal, error_of, last_checkpoint, run

ONE = ["--trainer.max_epochs=1"]


def refused(command, settings, folder, capsys):
    with pytest.raises(SystemExit) as end:
        run(command, settings, folder)
    assert end.value.code == 2
    return capsys.readouterr().err


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.thorough
def test_a_folder_holds_one_run_and_evaluations_of_it_side_by_side(tmp_path, capsys):
    run("fit", [*SMALL, *ONE], tmp_path)
    before = files(tmp_path)
    for command, settings in (("fit", ["--model.epsilon=0.3"]), ("test", []), ("predict", [])):
        error = refused(command, [*SMALL, *ONE, *settings], tmp_path, capsys)
        assert f"trainer.default_root_dir: got '{tmp_path}'; it holds results.json of another run; give an" in error
    assert files(tmp_path) == before
    own = [*SMALL, *ONE, f"--ckpt_path={last_checkpoint(tmp_path)}"]
    run("test", own, tmp_path)
    run("test", [*own, "--model.epsilon=0.3"], tmp_path)
    run("validate", own, tmp_path)
    records = json.loads((tmp_path / "results.json").read_text())
    assert list(records) == ["fit", "test", "test-2", "validate"]
    assert [record["config"]["model"]["init_args"]["epsilon"] for record in records.values()] == [0.1, 0.1, 0.3, 0.1]
    assert records["fit"] == json.loads(before[(tmp_path / "results.json").relative_to(tmp_path)])["fit"]
    configs = {path.name for path in tmp_path.glob("config*.yaml")}
    assert configs == {"config.yaml", "config-test.yaml", "config-test-2.yaml", "config-validate.yaml"}
    assert (tmp_path / "config.yaml").read_bytes() == before[(tmp_path / "config.yaml").relative_to(tmp_path)]


@pytest.mark.thorough
def test_a_job_that_starts_two_runs_keeps_them_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "17")  # Lightning's version of the log folder then
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    logger = [f"--trainer.logger={{class_path: TensorBoardLogger, init_args: {{save_dir: {tmp_path}, version: 17}}}}"]
    run("fit", [*SMALL, *ONE], tmp_path / "elsewhere")
    import train

    quiet = [setting for setting in QUIET if "logger" not in setting]
    train.main(["fit", *SMALL, *ONE, *quiet, *logger])
    with pytest.raises(SystemExit):
        train.main(["fit", *SMALL, *ONE, *quiet, *logger])
    assert "version_17'; it holds results.json of another run" in capsys.readouterr().err


def test_a_record_is_strict_json_and_its_command_runs_again(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    add_record(path, "fit", {"metrics": {"a": math.nan, "b": [1.0, -math.inf]}, "config": {"c": math.inf, "d": None}})
    text = path.read_text()
    record = json.loads(text, parse_constant=lambda word: pytest.fail(word))["fit"]
    assert record["metrics"] == {"a": None, "b": [1.0, None]}
    assert record["not_finite"] == {"metrics.a": "nan", "metrics.b.1": "-inf", "config.c": "inf"}

    def full(self, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(ValueError, match="it cannot be written: No space left on device"):
        add_record(path, "test", {"metrics": {}})
    monkeypatch.undo()
    assert path.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_the_command_can_be_run_again(tmp_path):
    folder = tmp_path / "with space and 'quote'"
    small = [*SMALL, *ONE, "--trainer.limit_train_batches=1", *QUIET, f"--trainer.default_root_dir={folder}"]
    program = Program(["fit", *small], tmp_path)
    assert program.wait() == 0, program.stderr
    command = json.loads((folder / "results.json").read_text())["fit"]["command"]
    here = [argument.replace(f"{tmp_path}/", "") for argument in small]
    assert shlex.split(command) == ["python", str(ROOT / "train.py"), "fit", *here], "paths below the working directory"


@pytest.mark.thorough
def test_a_dry_run_writes_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = f"--config={ROOT / 'configs' / 'quickstart.yaml'}"
    import train

    train.main(["fit", config, "--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"])
    train.main(["test", config, "--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"])
    assert not list(tmp_path.rglob("*"))


def test_checkpoints_can_be_turned_off(tmp_path):
    checkpoint, results = run("fit", [*SMALL, *ONE, "--trainer.enable_checkpointing=false"], tmp_path)
    assert checkpoint is None
    assert results["metrics"]


CERTIFIED = "--trainer.callbacks=[{class_path: CertifiedEvaluation, init_args: {every_n_epochs: 2}}]"
SANITY = "--trainer.num_sanity_val_steps=1"
BETTER = ["--checkpoint.mode=max"]
PLATEAU = "{class_path: pytorch_lightning.cli.ReduceLROnPlateau, init_args: {monitor: val/accuracy/claen}}"
SIZES = "--trainer.callbacks.epsilons=[0.1, 0.2]"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--checkpoint.monitor=val/accuracy/claen"],
            "checkpoint.monitor: got 'val/accuracy/claen'; did you mean val/accuracy/clean",
        ),
        (
            [f"--model.lr_scheduler={PLATEAU}"],
            "lr_scheduler.monitor: got 'val/accuracy/claen'; did you mean val/accuracy/clean",
        ),
        (
            ["--checkpoint.monitor=val/certified_accuracy/linf_0.1", "--checkpoint.mode=max"],
            "it is logged only every 2 epochs; set its evaluation's",
        ),
        (
            ["--checkpoint.monitor=val/certified_accuracy/linf_*", "--checkpoint.mode=max"],
            "it is logged only every 2 epochs; set its evaluation's",
        ),
        (
            ["--checkpoint.monitor=val/accuracy/clean"],
            "checkpoint.mode: got 'min'; val/accuracy/clean: higher is better; give max",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/accuracy/clean"],
            "EarlyStopping.mode: got 'min'; val/accuracy/clean: higher is better; give max",
        ),
        (
            ["--checkpoint.monitor=val/certified_accuracy/linf_*", *BETTER, SIZES],
            "it names val/certified_accuracy/linf_0.1, val/certified_accuracy/linf_0.2; give one of them",
        ),
        (
            ["--checkpoint.monitor=val/nothing"],
            "checkpoint.monitor: got 'val/nothing'; validations log val/accuracy/clean, ",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/*"],
            "EarlyStopping.monitor: got 'val/*'; validations log",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/none"],
            "EarlyStopping.monitor: got 'val/none'",
        ),
        (["--checkpoint.monitor=val_acc"], "checkpoint.monitor: got 'val_acc'; did you mean val/accuracy/clean? "),
        (
            ["--checkpoint.monitor=accuracy/clean"],
            "got 'accuracy/clean'; did you mean val/accuracy/clean? validations log val/accuracy/clean",
        ),
        (
            ["--checkpoint.filename={epoch}-{val/nothing:.2f}"],
            "checkpoint.filename: got 'val/nothing'; validations log val/accuracy/clean, ",
        ),
    ],
)
def test_a_missing_metric_is_an_error_before_training(settings, message, tmp_path, monkeypatch, capsys):
    import train

    quiet = [setting for setting in QUIET if "sanity" not in setting]
    folder = f"--trainer.default_root_dir={tmp_path}"
    with pytest.raises(SystemExit):
        train.main(["fit", *SMALL, CERTIFIED, SANITY, *settings, *quiet, folder])
    assert message in capsys.readouterr().err
    assert not last_checkpoint(tmp_path).exists()


def test_a_name_with_a_metric_that_nothing_logs_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("fit", [*SMALL, "--checkpoint.filename={epoch}-{accuracy:.2f}"], tmp_path)
    assert "checkpoint.filename: got 'accuracy'; nothing logs it at this point; name one of" in capsys.readouterr().err
    named = ["--checkpoint.filename={epoch}-{val/accuracy/clean:.2f}", "--checkpoint.auto_insert_metric_name=false"]
    run("fit", [*SMALL, *named], tmp_path / "named")


@pytest.mark.parametrize(
    ("monitor", "remedy"),
    [
        ("train/losss", "did you mean train/loss?"),
        ("val/acuracy/clean", "did you mean val/accuracy/clean?"),
        ("unlike", "give one of "),
    ],
)
def test_a_monitor_that_is_known_to_be_absent_after_an_epoch_is_named(monitor, remedy, tmp_path, capsys):
    """Regression: it was Lightning's text, without the setting and a near name."""
    settings = [*SMALL, f"--checkpoint.monitor={monitor}", "--trainer.max_epochs=1"]
    error = refused("fit", settings, tmp_path, capsys)
    assert f"error: checkpoint.monitor: got '{monitor}'; nothing logs it in this training; {remedy}" in error


def test_metrics_that_exist_when_they_are_needed_are_accepted(tmp_path):
    import train

    quiet = [setting for setting in QUIET if "sanity" not in setting]
    often = [
        "--checkpoint.monitor=val/certified_accuracy/linf_*",
        "--checkpoint.mode=max",
        "--checkpoint.every_n_epochs=2",
    ]
    train.main(["fit", *SMALL, CERTIFIED, SANITY, *often, *quiet, f"--trainer.default_root_dir={tmp_path}"])
    assert len(list((tmp_path / "checkpoints").glob("epoch=*.ckpt"))) == 1


def test_a_monitor_of_several_metrics_is_refused_without_a_sanity_check_too(tmp_path, capsys):
    several = ["--checkpoint.monitor=val/certified_accuracy/linf_*", *BETTER, SIZES, "--checkpoint.every_n_epochs=2"]
    error = refused("fit", [*SMALL, CERTIFIED, *several], tmp_path, capsys)
    assert (
        "checkpoint.monitor: got 'val/certified_accuracy/linf_*'; it names val/certified_accuracy/linf_0.1, " in error
    )


def test_a_checkpoint_with_another_monitor_is_resumed(tmp_path):
    checkpoint, _ = run("fit", [*SMALL, "--trainer.max_epochs=2"], tmp_path / "old")
    (state,) = (key for key in checkpoint["callbacks"] if "Checkpoint" in key)
    old = state.replace("'monitor': None", "'monitor': 'val/other'")
    checkpoint["callbacks"][old] = checkpoint["callbacks"].pop(state) | {"monitor": "val/other"}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    settings = [f"--ckpt_path={tmp_path / 'old.ckpt'}", "--checkpoint.monitor=val/accuracy/clean", *BETTER]
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint need to be provided"):
        resumed, results = run("fit", [*SMALL, *settings], tmp_path / "new")
    assert resumed["epoch"] == 3
    assert 0 <= results["metrics"]["val/accuracy/clean"] <= 1


@pytest.mark.thorough
def test_trying_out_an_evaluation_changes_no_weight(tmp_path):
    import train

    quiet = [setting for setting in QUIET if "sanity" not in setting]
    ends = []
    monitored = ["--checkpoint.monitor=val/certified_accuracy/linf_0.1", "--checkpoint.mode=max"]
    for name, monitor in (("plain", []), ("monitored", monitored)):
        every = CERTIFIED.replace("2}", "1}")
        folder = tmp_path / name
        train.main(["fit", *SMALL, every, SANITY, *monitor, *quiet, f"--trainer.default_root_dir={folder}"])
        ends.append(torch.load(last_checkpoint(folder), weights_only=True)["state_dict"])
    assert_equal(*ends, "weights")


RAMP = ["--epsilon_schedule.shape=linear", "--epsilon_schedule.start_epoch=2", "--epsilon_schedule.length=2"]


class StopEarly(Callback):
    """Asks for an early stop in the second epoch."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.filterwarnings("ignore:the last validation was at step")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--trainer.max_epochs=2"], "the ramp ends with epoch 3, after trainer.max_epochs 2; epsilon never reaches"),
        (["--trainer.max_steps=7"], "the ramp ends with epoch 3, after trainer.max_steps 7"),
        (["--trainer.max_epochs=3"], "the ramp ends with epoch 3, with trainer.max_epochs 3; epsilon never reaches"),
        ([f"--trainer.callbacks+={__name__}.StopEarly"], "the training stopped in epoch 2, inside the ramp"),
    ],
)
def test_a_ramp_that_does_not_end_is_warned_of(settings, message, tmp_path):
    with pytest.warns(UserWarning, match=message):
        run("fit", [*SMALL, *RAMP, *settings], tmp_path)


@pytest.mark.thorough
def test_averaging_that_trains_on_is_refused_and_that_of_every_step_works(tmp_path, capsys):
    swa = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
    error = refused("fit", [*SMALL, *swa], tmp_path / "swa", capsys)
    assert "trainer.callbacks: got 'StochasticWeightAveraging'; it continues the training for an epoch" in error
    ema = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
    average, _ = run("fit", [*SMALL, *ema], tmp_path / "ema")
    plain, _ = run("fit", SMALL, tmp_path / "plain")
    assert average["global_step"] == plain["global_step"] == 12
    name = next(iter(plain["state_dict"]))
    assert not torch.equal(average["state_dict"][name], plain["state_dict"][name])
    current = average["current_model_state"][f"module.{name}" if f"module.{name}" in average else name]
    assert torch.equal(current, plain["state_dict"][name])


@pytest.mark.parametrize("own", [[], ["--trainer.max_epochs=1"]], ids=["alone", "before another setting"])
@pytest.mark.parametrize(("part", "value"), [("trainer", "[1]"), ("checkpoint", "false"), ("epsilon_schedule", "3")])
def test_a_group_of_settings_is_a_mapping(part, value, own, tmp_path, capsys):
    """Regression: it ended in a traceback; before a setting on the command line, the file's others were dropped."""
    (tmp_path / "wrong.yaml").write_text(f"{part}: {value}\n", encoding="utf-8")
    start = ["fit", f"--config={ROOT}/configs/quickstart.yaml"]
    error = error_of([*start, f"--config={tmp_path}/wrong.yaml", *own], capsys)
    assert error.startswith(f"{part}: got {yaml.safe_load(value)!r}; give its settings by their names")
    error = error_of([*start, f"--{part}={value}", *own], capsys)
    assert error == f"{part}: got {value!r}; give its settings by their names, such as --{part}.NAME=VALUE"
