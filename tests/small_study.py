"""A sweep of small trainings, and one whose trainings are fakes."""

import json

import yaml

import sweep
from tests.small_run import SMALL

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


def fake_objectives(monkeypatch, fails=None):
    """Trials that train nothing; those of the given numbers raise."""

    def measured(_, trial, settings):
        if trial.number in (fails or {}):
            raise fails[trial.number]
        return [settings["model.optimizer.lr"]]

    monkeypatch.setattr(sweep, "objectives", measured)
