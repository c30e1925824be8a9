"""The file of a sweep: settings as distributions, objectives and seeds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cli.config_files import load_settings
from robust.errors import SettingError, require

if TYPE_CHECKING:
    from optuna import Trial

Direction = Literal["maximize", "minimize"]
KINDS = ("uniform", "log_uniform", "integer", "choice")


@dataclass
class StudyFile:
    """What a sweep tries, and what it optimises.

    Args:
        config: paths of config files, relative to the folder of the study's file.
        settings: full name of each setting that is tried, to one of ``uniform``, ``log_uniform`` or ``integer`` with
            [low, high], or ``choice`` with a list of values.
        objectives: validation metrics to ``maximize`` or ``minimize``.
        folder: log folder of all runs and of the study's storage.
        trials: number of trials.
        seeds: each trial trains once with each of them; an objective is the mean.
        prune: whether to stop trials that are worse than the median of the others at the same epoch; for one objective.

    Raises:
        SettingError: if a value does not fit.
    """

    config: list[str]
    settings: dict[str, dict[str, list[Any]]]
    objectives: dict[str, Direction]
    folder: str
    trials: int = 20
    seeds: list[int] = field(default_factory=lambda: [0])
    prune: bool = False

    def __post_init__(self) -> None:
        require(bool(self.settings), "settings", self.settings, "name at least one setting, such as model.epsilon")
        for name, distribution in self.settings.items():
            _check_distribution(f"settings.{name}", distribution)
        require(bool(self.objectives), "objectives", self.objectives, "name at least one metric, such as val/loss")
        for name, direction in self.objectives.items():
            require(direction in ("maximize", "minimize"), f"objectives.{name}", direction, "give maximize or minimize")
            remedy = "give a metric of validation: a choice by test images is no evidence"
            require(name.startswith("val/"), "objectives", name, remedy)
        require(self.trials >= 1, "trials", self.trials, "give at least 1")
        require(bool(self.seeds), "seeds", self.seeds, "give at least one")
        require(not self.prune or len(self.objectives) == 1, "prune", True, "give one objective, or do not prune")

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The trial's value of each setting."""
        return {name: _suggest(trial, name, *next(iter(kind.items()))) for name, kind in self.settings.items()}


def read_study(path: str) -> StudyFile:
    """The study in a YAML file, its config files as absolute paths.

    Raises:
        SettingError: if the file cannot be read or a setting does not fit.
    """
    names = {each.name for each in fields(StudyFile)}
    required = ("config", "settings", "objectives", "folder")
    content = load_settings("study", path, names, required, "configs/sweeps/r2_weight.yaml")
    config = content["config"] if isinstance(content["config"], list) else [content["config"]]
    return StudyFile(**content | {"config": [str((Path(path).parent / each).resolve()) for each in config]})


def _check_distribution(name: str, distribution: Any) -> None:
    fits = isinstance(distribution, dict) and len(distribution) == 1 and next(iter(distribution)) in KINDS
    require(fits, name, distribution, f"give one of {', '.join(KINDS)} with a list, such as uniform: [0, 1]")
    ((kind, values),) = distribution.items()
    require(isinstance(values, list) and bool(values), f"{name}.{kind}", values, "give a list")
    if kind == "choice":
        return
    numbers = all(isinstance(value, int | float) for value in values)
    fits = numbers and len(values) == 2 and values[0] < values[1] and (kind != "log_uniform" or values[0] > 0)
    if not fits:
        raise SettingError(f"{name}.{kind}", values, "give [low, high], with 0 < low for log_uniform")


def _suggest(trial: Trial, name: str, kind: str, values: list[Any]) -> Any:
    if kind == "choice":
        return trial.suggest_categorical(name, values)
    if kind == "integer":
        return trial.suggest_int(name, int(values[0]), int(values[1]))
    return trial.suggest_float(name, values[0], values[1], log=kind == "log_uniform")
