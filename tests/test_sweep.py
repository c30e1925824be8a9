"""Sweeps: settings are tried, a stopped sweep goes on, several processes share one, wrong files are named."""

import json
import os
import sys
from pathlib import Path

import optuna
import pytest
import yaml

import sweep
from cli.config_files import as_argument
from cli.study import StudyFile, read_study
from robust.errors import GradientError, NonFiniteLossError, ZeroGradientError
from tests.command_line import CONFIGS
from tests.programs import Program
from tests.small_study import fake_objectives, trials, write
from tests.testers import ROOT


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


def test_a_trial_of_a_grid_that_stops_between_two_settings_starts_again(tmp_path, monkeypatch):
    """Regression: it was queued with its first setting alone, so that one combination ran twice and another never."""
    rates, steps = [0.1, 0.2], [1, 2]
    settings = {"model.optimizer.lr": {"choice": rates}, "model.attack.steps": {"choice": steps}}
    fake_objectives(monkeypatch)
    path = write(tmp_path, settings=settings, trials=None)
    study_file = read_study(path)
    Path(study_file.folder).mkdir(parents=True, exist_ok=True)
    study = sweep.open_study(study_file)
    sweep.queue_grid(study, study_file)
    trial = study.ask()
    trial.suggest_categorical("model.optimizer.lr", rates)  # and the process is killed
    sweep.main([path])
    tried = [tuple(row["settings"].values()) for row in trials(tmp_path) if row["state"] == "complete"]
    assert sorted(tried) == [(step, rate) for step in steps for rate in rates]


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


@pytest.mark.slow
def test_two_processes_share_the_trials(tmp_path):
    sweep.main([write(tmp_path, seeds=[0], trials=4), "--processes=2"])
    assert [row["state"] for row in trials(tmp_path)] == ["complete"] * 4


def test_a_trial_worse_than_the_median_is_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda: optuna.pruners.ThresholdPruner(lower=2.0))
    sweep.main([write(tmp_path, seeds=[0], trials=2, prune=True)])
    assert [row["state"] for row in trials(tmp_path)] == ["pruned"] * 2


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


@pytest.mark.parametrize("error", [NonFiniteLossError, GradientError, ZeroGradientError])
def test_a_trial_whose_training_ends_by_such_an_error_diverged(error, tmp_path, monkeypatch, capsys):
    """Regression: a gradient of NaN ended the sweep."""

    def diverge(arguments):
        try:
            raise error("it is NaN")
        except error:
            sys.exit(2)

    monkeypatch.setattr(sweep.train, "main", diverge)
    sweep.main([write(tmp_path, trials=1)])
    assert "Diverged: trial 0: seed 0: it is NaN" in capsys.readouterr().out.splitlines()
