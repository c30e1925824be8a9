"""The file of a sweep: settings as distributions, objectives and seeds."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cli.config_files import check_seeds, load_settings, require_free
from robust.errors import SettingError, require

if TYPE_CHECKING:
    from optuna import Trial

Direction = Literal["maximize", "minimize"]
KINDS = ("uniform", "log_uniform", "integer", "choice")


@dataclass
class StudyFile:
    """The settings that a sweep tries, and its objectives.

    Args:
        config: paths of config files, relative to the folder of the study's file.
        settings: distribution of each setting, by its full name: ``uniform``, ``log_uniform`` or ``integer`` with
            [low, high], or ``choice`` with a list of values.
        objectives: ``maximize`` or ``minimize`` by the name of a validation metric.
        folder: log folder of all runs and of the study's storage.
        trials: number of trials; by default 20, or where every setting is a ``choice``, a grid, all its combinations.
        seeds: seeds; each trial trains once with each of them, and an objective is the mean over them.
        prune: whether to stop trials that are worse than the median of the others at the same epoch; only for a single
            objective.

    Raises:
        SettingError: if a value does not fit.
    """

    config: list[str]
    settings: dict[str, dict[str, list[Any]]]
    objectives: dict[str, Direction]
    folder: str
    trials: int | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    prune: bool = False

    def __post_init__(self) -> None:
        remedy = "name at least one setting, such as model.epsilon: {uniform: [0, 1]}"
        require(isinstance(self.settings, dict) and bool(self.settings), "settings", self.settings, remedy)
        for name, distribution in self.settings.items():
            require_free(f"settings.{name}", name, distribution)
            _check_distribution(f"settings.{name}", distribution)
        remedy = "name at least one metric, such as val/accuracy/clean: maximize"
        require(isinstance(self.objectives, dict) and bool(self.objectives), "objectives", self.objectives, remedy)
        for name, direction in self.objectives.items():
            require(direction in ("maximize", "minimize"), f"objectives.{name}", direction, "give maximize or minimize")
            remedy = "give a validation metric: settings that are chosen on test images do not generalize"
            require(str(name).startswith("val/"), "objectives", name, remedy)
        require(isinstance(self.folder, str), "folder", self.folder, "give the path of a folder")
        fits = self.trials is None or (type(self.trials) is int and self.trials >= 1)
        require(fits, "trials", self.trials, "give a whole number of at least 1")
        fits = not self.grid() or self.count() <= len(self.grid())
        require(fits, "trials", self.trials, f"the choices have {len(self.grid())} combinations; leave trials out")
        check_seeds(self.seeds)
        require(isinstance(self.prune, bool), "prune", self.prune, "give true or false")
        require(not self.prune or len(self.objectives) == 1, "prune", True, "give one objective, or do not prune")

    def count(self) -> int:
        """Number of trials."""
        return (len(self.grid()) or 20) if self.trials is None else self.trials

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of the choices; none if a setting is drawn from an interval."""
        if any("choice" not in distribution for distribution in self.settings.values()):
            return []
        choices = [distribution["choice"] for distribution in self.settings.values()]
        return [dict(zip(self.settings, values, strict=True)) for values in itertools.product(*choices)]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The trial's value of each setting."""
        return {name: _suggest(trial, name, *next(iter(kind.items()))) for name, kind in self.settings.items()}


def read_study(path: str) -> StudyFile:
    """Read the study in a YAML file; its config files get absolute paths.

    Raises:
        SettingError: if the file cannot be read or a setting does not fit.
    """
    names = {field.name for field in fields(StudyFile)}
    required = ("config", "settings", "objectives", "folder")
    content = load_settings("study", path, names, required, "configs/sweeps/r2_weight.yaml")
    config = content["config"] if isinstance(content["config"], list) else [content["config"]]
    require(bool(config), "config", config, "give paths of config files")
    for file in config:
        require(isinstance(file, str), "config", file, "give paths of config files")
    return StudyFile(**content | {"config": [str((Path(path).parent / file).resolve()) for file in config]})


def _check_distribution(name: str, distribution: Any) -> None:
    fits = isinstance(distribution, dict) and len(distribution) == 1 and next(iter(distribution)) in KINDS
    require(fits, name, distribution, f"give one of {', '.join(KINDS)} with a list, such as uniform: [0, 1]")
    ((kind, values),) = distribution.items()
    require(isinstance(values, list) and bool(values), f"{name}.{kind}", values, "give a list")
    if kind == "choice":
        fits = all(value is None or isinstance(value, int | float | str) for value in values)
        require(fits, f"{name}.choice", values, "give numbers, strings, true, false or null; others by a config file")
        different = {(isinstance(value, bool), value) for value in values}  # 1 and 1.0 are one value, true is another
        require(len(different) == len(values), f"{name}.choice", values, "give each value once")
        return
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    whole = kind != "integer" or all(isinstance(value, int) for value in values)
    require(whole, f"{name}.integer", values, "give whole numbers, [low, high]")
    fits = numbers and len(values) == 2 and values[0] < values[1] and (kind != "log_uniform" or values[0] > 0)
    if not fits:
        raise SettingError(f"{name}.{kind}", values, "give finite numbers, [low, high], with 0 < low for log_uniform")


def _suggest(trial: Trial, name: str, kind: str, values: list[Any]) -> Any:
    if kind == "choice":
        return trial.suggest_categorical(name, values)
    if kind == "integer":
        return trial.suggest_int(name, int(values[0]), int(values[1]))
    return trial.suggest_float(name, values[0], values[1], log=kind == "log_uniform")
