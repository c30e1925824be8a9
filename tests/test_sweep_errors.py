"""Wrong studies, folders of other sweeps and absent objectives are named."""

from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock

import sweep
from cli.study import read_study
from robust.errors import SettingError
from tests.small_study import fake_objectives, trials, write


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"objectives": {"val/accuracy/clean": "minimize"}}, "objectives"),
        ({"seeds": [5]}, "seeds"),
        ({"settings": {"model.optimizer.lr": {"uniform": [0.001, 0.1]}}}, "settings"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(change, name, tmp_path, monkeypatch):
    """Regression: its trials were mixed with those of the first, whose direction it kept."""
    fake_objectives(monkeypatch)
    sweep.main([write(tmp_path)])
    with pytest.raises(SettingError, match=rf"^folder: got .*; it has a sweep with other {name}; give another folder"):
        sweep.main([write(tmp_path, **change)])
    sweep.main([write(tmp_path, trials=4)])
    assert len(trials(tmp_path)) == 4


def test_settings_that_each_trial_gets_are_refused(tmp_path):
    """Regression: a sweep of seeds recommended one with which nothing had run."""
    for name in ("seed_everything", "trainer.default_root_dir"):
        with pytest.raises(SettingError, match=rf"^settings\.{name}: got .*; each run gets a value of its own; give "):
            read_study(write(tmp_path, settings={name: {"choice": [0, 1]}}))


def test_a_folder_in_which_a_sweep_runs_is_refused(tmp_path, monkeypatch):
    fake_objectives(monkeypatch)
    path = write(tmp_path)
    (tmp_path / "sweep").mkdir()
    with (
        FileLock(tmp_path / "sweep" / "sweep.lock"),
        pytest.raises(SettingError, match=r"^folder: got .*; another process runs a sweep in it"),
    ):
        sweep.main([path])
    sweep.main([path])


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "sweep").touch()
    with pytest.raises(
        SettingError, match=r"folder: got '.*sweep'; it cannot be written \(File exists\); give another"
    ):
        sweep.main([write(tmp_path)])


def test_an_error_in_a_process_of_its_own_is_one_line(tmp_path, monkeypatch, capsys):
    def failing(*_):
        raise SettingError("model.epsilon", -1, "give a size")

    monkeypatch.setattr(sweep, "run_trials", failing)
    with pytest.raises(SystemExit) as end:
        sweep._work(read_study(write(tmp_path)), None, 0, 0)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: model.epsilon: got -1; give a size\n"


def test_a_killed_process_of_a_sweep_is_named(tmp_path, monkeypatch, capsys):
    """Regression: the sweep ended with status 2 and without a word."""
    fake = SimpleNamespace(start=lambda: None, join=lambda: None, exitcode=-9)
    context = SimpleNamespace(Lock=lambda: None, Process=lambda **_: fake)
    monkeypatch.setattr(sweep, "get_context", lambda _: context)
    with pytest.raises(SystemExit) as end:
        sweep.main([write(tmp_path), "--processes=2"])
    assert end.value.code == 2
    message = "error: a process was ended by SIGKILL; the same command continues\n"
    assert capsys.readouterr().err == 2 * message


@pytest.mark.thorough
def test_a_pruner_needs_the_objective_of_every_validation(tmp_path, capsys):
    """Regression: it compared values of earlier epochs."""
    evaluation = {"class_path": "CertifiedEvaluation", "init_args": {"every_n_epochs": 2, "max_batches": 1}}
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({"trainer.callbacks": [evaluation], "trainer.max_epochs": 2}))
    study = {"config": ["small.yaml", "second.yaml"], "settings": {"model.attack.steps": {"choice": [1]}}}
    study |= {"objectives": {"val/certified_accuracy/linf_0.1": "maximize"}, "trials": None, "seeds": [0]}
    with pytest.raises(SystemExit):
        sweep.main([write(tmp_path, **study, prune=True)])
    assert "it is logged only every 2 epochs; set its evaluation's every_n_epochs to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"objectives": {"test/accuracy/clean": "minimize"}},
            "objectives: got 'test/accuracy/clean'; give a validation metric",
        ),
        (
            {"objectives": {"val/accuracy/clean": "lower"}},
            "objectives.val/accuracy/clean: got 'lower'; give maximize or",
        ),
        ({"objectives": {}}, "objectives: got {}; name at least one metric"),
        ({"objectives": ["val/loss"]}, "objectives: got ['val/loss']; name at least one metric"),
        ({"settings": {}}, "settings: got {}; name at least one setting"),
        ({"settings": ["model.epsilon"]}, "settings: got ['model.epsilon']; name at least one setting"),
        (
            {"settings": {"a": {"uniform": [0.1, float("inf")]}}},
            "settings.a.uniform: got [0.1, inf]; give finite numbers, [low, high]",
        ),
        ({"settings": {"a": {"choice": [0.1, 0.10]}}}, "settings.a.choice: got [0.1, 0.1]; give each value once"),
        ({"seeds": [-3]}, "seeds: got [-3]; give a list of different whole numbers from 0 to 4294967295"),
        ({"prune": "no"}, "prune: got 'no'; give true or false"),
        ({"trials": True}, "trials: got True; give a whole number"),
        ({"config": []}, "config: got []; give paths of config files"),
        ({"config": [3]}, "config: got 3; give paths of config files"),
        ({"folder": 3}, "folder: got 3; give the path of a folder"),
        ({"trials": "many"}, "trials: got 'many'; give a whole number"),
        ({"seeds": 3}, "seeds: got 3; give a list of"),
        ({"settings": {"model.epsilon": [0, 1]}}, "settings.model.epsilon: got [0, 1]; give one of uniform"),
        (
            {"settings": {"model.epsilon": {"uniform": [1, 0]}}},
            "settings.model.epsilon.uniform: got [1, 0]; give finite",
        ),
        (
            {"settings": {"a": {"log_uniform": [0, 1]}}},
            "settings.a.log_uniform: got [0, 1]; give finite numbers, [low, high], with 0 <",
        ),
        ({"seeds": [1, 1]}, "seeds: got [1, 1]; give a list of different whole numbers"),
        ({"settings": {"a": {"integer": [0.5, 8]}}}, "settings.a.integer: got [0.5, 8]; give whole numbers"),
        ({"trials": 0}, "trials: got 0; give a whole number of at least 1"),
        (
            {"settings": {"model.epsilon": {"choice": [0, 1]}}, "trials": 3},
            "trials: got 3; the choices have 2 combinations; leave trials out",
        ),
        (
            {"settings": {"model.epsilon": {"choice": [[0, 1]]}}},
            "settings.model.epsilon.choice: got [[0, 1]]; give numbers, strings, true, false or null",
        ),
        ({"seeds": []}, "seeds: got []; give a list of different whole"),
        (
            {"prune": True, "objectives": {"val/a": "minimize", "val/b": "maximize"}},
            "prune: got True; give one objective",
        ),
        ({"trails": 3}, "study: got 'trails'; no such setting; give config, folder, objectives"),
    ],
)
def test_wrong_studies_are_named(change, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        sweep.main([write(tmp_path, **change)])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_an_objective_that_is_not_logged_and_another_sweep_in_the_folder_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweep.main([write(tmp_path, objectives={"val/none": "minimize"})])
    assert "error: objectives: got 'val/none'; validations log val/accuracy/clean" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt")), "it ends before the training"
    with pytest.raises(
        SettingError, match=r"^folder: got .*; it has a sweep with other objectives; give another folder"
    ):
        sweep.main([write(tmp_path)])
