"""Sweeps: settings are tried, a stopped sweep goes on, several processes share one, wrong files are named."""

import json
import os
from pathlib import Path

import optuna
import pytest
import yaml
from filelock import FileLock

import sweep
from cli.config_files import as_argument
from cli.study import StudyFile, read_study
from robust.errors import SettingError
from tests.command_line import CONFIGS
from tests.programs import Program
from tests.small_run import SMALL
from tests.testers import ROOT

STUDY = {
    "config": "small.yaml",
    "settings": {
        "model.optimizer.lr": {"log_uniform": [0.001, 0.1]},
        "model.attack.steps": {"choice": [1, 2]},
        "model.attack.start": {"choice": ["gaussian"]},
    },
    "objectives": {"val/accuracy/clean": "maximize", "train/loss": "minimize"},
    "trials": 3,
    "seeds": [0, 1],
}


def write(folder, /, **changes):
    """A study of small trainings in a folder."""
    settings = dict(argument.removeprefix("--").split("=", 1) for argument in SMALL)
    base = settings.pop("config")
    plain = {name: yaml.safe_load(value) for name, value in settings.items()}
    plain |= {"trainer.enable_progress_bar": False, "trainer.max_epochs": 1, "checkpoint.dirpath": str(folder / "all")}
    (folder / "small.yaml").write_text(yaml.safe_dump({"config": base} | plain))
    study = STUDY | {"objectives": {"val/accuracy/clean": "maximize"}, "folder": str(folder / "sweep")} | changes
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return str(folder / "study.yaml")


def trials(folder):
    return json.loads((folder / "sweep" / "trials.json").read_text())


@pytest.mark.thorough
def test_every_trial_trains_with_its_settings_and_all_seeds(tmp_path, capsys):
    sweep.main([write(tmp_path)])
    rows = trials(tmp_path)
    assert len(rows) == 3
    assert "Best of 3 trials" in capsys.readouterr().out
    assert not (tmp_path / "all").exists(), "checkpoints of all trials in one folder"
    for row in rows:
        assert (tmp_path / "sweep" / f"trial_{row['trial']}" / "seed_0" / "checkpoints" / "last.ckpt").is_file()
        records = [
            json.loads((tmp_path / "sweep" / f"trial_{row['trial']}" / f"seed_{seed}" / "results.json").read_text())[
                "fit"
            ]
            for seed in (0, 1)
        ]
        assert [record["seed"] for record in records] == [0, 1]
        for record in records:
            model = record["config"]["model"]["init_args"]
            assert model["optimizer"]["init_args"]["lr"] == row["settings"]["model.optimizer.lr"]
            assert model["attack"]["init_args"]["steps"] == row["settings"]["model.attack.steps"]
            assert model["attack"]["init_args"]["start"] == "gaussian"
        accuracies = [record["metrics"]["val/accuracy/clean"] for record in records]
        assert row["objectives"]["val/accuracy/clean"] == pytest.approx(sum(accuracies) / 2)
    highest = max(row["objectives"]["val/accuracy/clean"] for row in rows)
    assert {row["trial"] for row in rows if row["best"]} & {
        row["trial"] for row in rows if row["objectives"]["val/accuracy/clean"] == highest
    }
    sweep.main([write(tmp_path)])  # all trials are there
    assert trials(tmp_path) == rows


def die_in_the_second_trial():
    """End the process when the second trial starts."""
    ask = sweep.next_trial

    def dying(study, *others):
        trial = ask(study, *others)
        if trial.number == 1:
            sweep.StudyFile.suggest(read_study("study.yaml"), trial)
            os._exit(9)
        return trial

    sweep.next_trial = dying


@pytest.mark.thorough
def test_a_killed_sweep_goes_on_with_the_settings_of_the_killed_trial(tmp_path):
    path = write(tmp_path, seeds=[0], trials=2)
    program = Program([path], tmp_path, before=die_in_the_second_trial, script="sweep")
    assert program.wait() == 9, program.stderr
    sweep.main([path])
    first, killed, again = trials(tmp_path)
    assert [first["state"], killed["state"], again["state"]] == ["complete", "fail", "complete"]
    assert again["settings"] == killed["settings"]


def fake_objectives(monkeypatch, fails=None):
    """Trials that train nothing; those of the given numbers raise."""

    def measured(_, trial, settings):
        if trial.number in (fails or {}):
            raise fails[trial.number]
        return [settings["model.optimizer.lr"]]

    monkeypatch.setattr(sweep, "objectives", measured)


@pytest.mark.thorough
def test_an_objective_may_be_that_of_the_last_epoch_alone(tmp_path):
    """Regression: sweeps by robustness_score/sweep.yaml, which scores the last network, were refused."""
    evaluation = {"class_path": "CertifiedEvaluation", "init_args": {"every_n_epochs": 1000, "max_batches": 1}}
    (tmp_path / "last.yaml").write_text(yaml.safe_dump({"trainer.callbacks": [evaluation], "trainer.max_epochs": 2}))
    objectives = {"val/certified_accuracy/linf_0.1": "maximize"}
    study = {"config": ["small.yaml", "last.yaml"], "settings": {"model.attack.steps": {"choice": [1]}}}
    sweep.main([write(tmp_path, **study, objectives=objectives, trials=None, seeds=[0])])
    assert [row["state"] for row in trials(tmp_path)] == ["complete"]


def test_a_sweep_that_goes_on_draws_new_settings(tmp_path, monkeypatch):
    fake_objectives(monkeypatch)
    for count in (2, 4, 5):  # each call stops after so many trials
        sweep.main([write(tmp_path, trials=count)])
    rates = [row["settings"]["model.optimizer.lr"] for row in trials(tmp_path)]
    assert len(set(rates)) == 5
    fresh = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(sampler=fresh, direction="maximize")
    expected = [read_study(str(tmp_path / "study.yaml")).suggest(study.ask()) for _ in range(2)]
    assert [row["settings"] for row in trials(tmp_path)[:2]] == expected, "a fresh study's seed is its worker's number"


def test_a_grid_tries_each_combination_once(tmp_path, monkeypatch):
    rates, steps = [0.1, 0.2, 0.3], [1, 2]
    given = {
        "settings": {"model.optimizer.lr": {"choice": rates}, "model.attack.steps": {"choice": steps}},
        "trials": None,
    }
    fake_objectives(monkeypatch, fails={1: ValueError("no memory"), 2: KeyboardInterrupt()})
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            sweep.main([write(tmp_path, **given)])
    sweep.main([write(tmp_path, **given)])
    assert sorted(row["state"] for row in trials(tmp_path)) == ["complete"] * 6 + ["fail"] * 2
    tried = [tuple(row["settings"].values()) for row in trials(tmp_path) if row["state"] == "complete"]
    assert sorted(tried) == [(step, rate) for step in steps for rate in rates]
    sweep.main([write(tmp_path, **given)])
    assert len(trials(tmp_path)) == 8, "nothing is left to try"


def test_failed_trials_are_named_and_not_counted(tmp_path, monkeypatch, capsys):
    fake_objectives(monkeypatch, fails={1: ValueError("no memory")})
    with pytest.raises(ValueError, match="no memory"):
        sweep.main([write(tmp_path)])
    sweep.main([write(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Best of 3 trials (")
    assert lines[-2] == "Failed or stopped: trial 1"
    assert len(trials(tmp_path)) == 4
    fake_objectives(monkeypatch)
    (tmp_path / "other").mkdir()
    sweep.main([write(tmp_path / "other")])
    assert "Failed" not in capsys.readouterr().out


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(130), SystemExit(143)], ids=repr)
def test_a_trial_that_a_signal_stops_starts_again(stop, tmp_path, monkeypatch):
    """Regression: only a trial whose process was killed did."""
    fake_objectives(monkeypatch, fails={1: stop})
    with pytest.raises(type(stop)):
        sweep.main([write(tmp_path)])
    fake_objectives(monkeypatch)
    sweep.main([write(tmp_path)])
    first, stopped, again, *_ = trials(tmp_path)
    assert (first["state"], stopped["state"], again["state"]) == ("complete", "fail", "complete")
    assert again["settings"] == stopped["settings"]


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


def test_a_sweep_goes_on_after_a_trial_whose_objective_is_no_number(tmp_path, monkeypatch, capsys):
    """Regression: the first such trial ended the sweep."""
    seen = []

    def diverged_once(arguments):
        folder = next(Path(each.partition("=")[2]) for each in arguments if "default_root_dir" in each)
        folder.mkdir(parents=True)
        seen.append(folder)
        nan = {"metrics": {"val/accuracy/clean": None}, "not_finite": {"metrics.val/accuracy/clean": "nan"}}
        finite = {"metrics": {"val/accuracy/clean": 0.5}, "not_finite": {}}
        (folder / "results.json").write_text(json.dumps({"fit": nan if len(seen) == 1 else finite}))

    monkeypatch.setattr(sweep.train, "main", diverged_once)
    for _ in range(2):
        sweep.main([write(tmp_path, trials=3)])
        assert "Diverged: trial 0: seed 0: val/accuracy/clean is nan" in capsys.readouterr().out.splitlines()
    assert [row["state"] for row in trials(tmp_path)] == ["diverged", "complete", "complete"]
    assert not trials(tmp_path)[0]["best"]
    assert len(seen) == 5, "a diverged trial ends with its first seed that diverged, and is not tried again"


@pytest.mark.thorough
def test_a_sweep_goes_on_after_a_training_that_diverges(tmp_path, capsys):
    """Regression: the error of the first training that diverged ended the sweep."""
    rates = {"model.optimizer.lr": {"choice": [0.01, 1e30]}}
    sweep.main([write(tmp_path, settings=rates, trials=None, seeds=[0])])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:26] for line in lines if line.startswith("Diverged")] == ["Diverged: trial 1: seed 0:"]
    assert [row["state"] for row in trials(tmp_path)] == ["complete", "diverged"]


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


@pytest.mark.slow
def test_two_processes_share_the_trials(tmp_path):
    sweep.main([write(tmp_path, seeds=[0], trials=4), "--processes=2"])
    assert [row["state"] for row in trials(tmp_path)] == ["complete"] * 4


def test_a_trial_worse_than_the_median_is_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda: optuna.pruners.ThresholdPruner(lower=2.0))
    sweep.main([write(tmp_path, seeds=[0], trials=2, prune=True)])
    assert [row["state"] for row in trials(tmp_path)] == ["pruned"] * 2


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
        ({"config": [3]}, "config: got 3; give paths of config files"),
        ({"folder": 3}, "folder: got 3; give the path of a folder"),
        ({"trials": "many"}, "trials: got 'many'; give a whole number"),
        ({"seeds": 3}, "seeds: got 3; give a list of"),
        ({"settings": {"model.epsilon": [0, 1]}}, "settings.model.epsilon: got [0, 1]; give one of uniform"),
        ({"settings": {"model.epsilon": {"uniform": [1, 0]}}}, "settings.model.epsilon.uniform: got [1, 0]; give [low"),
        (
            {"settings": {"a": {"log_uniform": [0, 1]}}},
            "settings.a.log_uniform: got [0, 1]; give [low, high], with 0 <",
        ),
        ({"seeds": [1, 1]}, "seeds: got [1, 1]; give a list of at least one whole number, all different"),
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
        ({"seeds": []}, "seeds: got []; give a list of at least one"),
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


@pytest.mark.thorough
@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_settings_exist(path, capsys):
    import train

    study = read_study(str(path))
    assert isinstance(study, StudyFile)
    values = {name: next(iter(kind.values()))[0] for name, kind in study.settings.items()}
    with pytest.raises(SystemExit) as end:
        train.main(["fit", *(f"--config={file}" for file in study.config),
                    *(as_argument(*each) for each in values.items()), "--print_config"])  # fmt: skip
    assert end.value.code == 0
    assert str(ROOT) not in study.folder
