"""The file of a matrix of experiments: runs, each with several seeds, and one evaluation of all runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cli.composition import content
from cli.config_files import as_argument, check_seeds, load_settings, require_free
from cli.user_modules import code_in
from robust.errors import require

Part = str | dict[str, Any]  # path of a config file, or settings by their full names


@dataclass(frozen=True)
class Job:
    """A training and its test.

    Args:
        name: name of the run in the matrix.
        seed: seed of the training.
        folder: log folder.
        result: file of the job's records; it exists when the job is done.
        training: arguments of ``train.py`` for the training: config files and settings.
        evaluation: arguments of the test; none for a training that other jobs need.
        needs: names of the trainings that this job needs.
    """

    name: str
    seed: int
    folder: Path
    result: Path
    training: tuple[str, ...]
    evaluation: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Path:
        """The weights after the training."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def note(self) -> Path:
        """The file with the settings of the training and the test in the log folder."""
        return self.folder / "run.json"

    @property
    def done(self) -> bool:
        """Whether the job's records are in the results."""
        return self.result.is_file()

    def fit(self) -> list[str]:
        """Arguments of the training, which resumes from the job's checkpoint if there is one."""
        resumed = [f"--ckpt_path={self.checkpoint}"] if self.checkpoint.is_file() else []
        return ["fit", *self.training, *self._common(), "--test_after_fit=false", *resumed]

    def test(self) -> list[str]:
        """Arguments of the test, which continues if it was stopped."""
        state = ["--trainer.callbacks+=ResumableTest", f"--trainer.callbacks.folder={self.folder / 'test'}"]
        return [*self._evaluated(), f"--ckpt_path={self.checkpoint}", *state]

    def check(self) -> list[str]:
        """Arguments that read the settings of the test, among which are those of the training, and run nothing."""
        return [*self._evaluated(), "--print_config"]

    def settings(self) -> dict[str, Any]:
        """Settings of the training, ``fit``, and of the test as plain data, for a comparison with another run.

        Raises:
            SettingError: if a config file cannot be read.
        """
        return {"fit": _settings(self.training), "test": _settings(self.evaluation)}

    def _evaluated(self) -> list[str]:
        return ["test", *self.training, "--trainer.callbacks=[]", *self.evaluation, *self._common()]

    def _common(self) -> list[str]:
        where = [f"--seed_everything={self.seed}", f"--trainer.default_root_dir={self.folder}"]
        where += [f"--checkpoint.dirpath={self.checkpoint.parent}", "--checkpoint.save_last=true"]
        return [*where, "--trainer.logger=false", "--trainer.enable_progress_bar=false"]


@dataclass
class Matrix:
    """The contents of a file of experiments.

    Args:
        runs: each run by its name: a config file, settings by their full names, or a list of these. Paths are relative
            to the folder of the matrix' file. A setting ``{NAME}`` stands for the checkpoint of a prepared run.
        evaluation: evaluation of every run, given like a run; it replaces the callbacks of the run's config.
        folder: log folder of all runs.
        results: folder of the records.
        seeds: seeds; each run trains once with each of them.
        prepare: runs as in ``runs`` that others need; those that a missing run needs train first, with the first seed
            alone.
        settings: settings of all runs, by their full names; a run's own settings override them.
        base: folder to which paths are relative.

    Raises:
        SettingError: if a value does not fit.
    """

    runs: dict[str, Part | list[Part]]
    evaluation: Part | list[Part]
    folder: str
    results: str
    seeds: list[int] = field(default_factory=lambda: [0])
    prepare: dict[str, Part | list[Part]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    base: Path = Path()

    def __post_init__(self) -> None:
        for name in ("runs", "prepare"):
            given = getattr(self, name)
            require(isinstance(given, dict), name, given, "give config files by name, such as mine: my_config.yaml")
            setattr(self, name, {str(run): parts for run, parts in given.items()})  # a name such as 0.1 is a number
            for run in getattr(self, name):
                fits = run.strip(" .") != "" and not set(run) & set("/\\")
                require(fits, name, run, "give the run a name that can be a folder's, without slashes")
        remedy = "give settings by their full names, such as trainer.max_epochs: 3"
        require(isinstance(self.settings, dict), "settings", self.settings, remedy)
        require(bool(self.evaluation), "evaluation", self.evaluation, "give a config file, such as protocol.yaml")
        require(bool(self.runs), "runs", self.runs, "give at least one, such as mine: my_config.yaml")
        check_seeds(self.seeds)
        for name in ("folder", "results"):
            given = getattr(self, name)
            require(isinstance(given, str), name, given, "give the path of a folder")
            path = Path(given)
            require(path.is_dir() or not path.exists(), name, str(path), "this is a file; give a folder")
        twice = sorted(self.runs.keys() & self.prepare.keys())
        require(not twice, "prepare", ", ".join(twice), "a run in runs has this name, too; rename one")
        self.jobs()  # raises if a file is absent

    def prepared(self) -> list[Job]:
        """The trainings that others need."""
        return [self._job(name, parts, self.seeds[0], tested=False) for name, parts in self.prepare.items()]

    def jobs(self) -> list[Job]:
        """Every run with every seed, ordered by seed, so that the first jobs include all runs."""
        return [self._job(name, parts, seed, tested=True) for seed in self.seeds for name, parts in self.runs.items()]

    def _job(self, name: str, parts: Part | list[Part], seed: int, *, tested: bool) -> Job:
        folder = Path(self.folder) / name / f"seed_{seed}"
        checkpoints = {job.name: str(job.checkpoint) for job in self.prepared()} if tested else {}
        result = Path(self.results) / f"{name}_{seed}.json" if tested else folder / "results.json"
        whole = [self.settings, *(parts if isinstance(parts, list) else [parts])]
        training = self._arguments(f"{'runs' if tested else 'prepare'}.{name}", whole, checkpoints)
        evaluation = self.evaluation if isinstance(self.evaluation, list) else [self.evaluation]
        judged = self._arguments("evaluation", evaluation, checkpoints) if tested else []
        given = (*training, *judged)
        needs = [other for other, path in checkpoints.items() if any(path in argument for argument in given)]
        return Job(name, seed, folder, result, tuple(training), tuple(judged), tuple(needs))

    def _arguments(self, name: str, parts: list[Part], checkpoints: dict[str, str]) -> list[str]:
        """Arguments of the command line, config files first."""
        for part in parts:
            require(isinstance(part, str | dict), name, part, "give config files, or settings by their full names")
        paths = [self.base / part for part in parts if isinstance(part, str)]
        for path in paths:
            require(path.is_file(), name, str(path), "this is not a file; paths are relative to the matrix' folder")
        settings = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
        for key in settings:
            require_free(f"{name}.{key}", key, settings[key])
        given = {key: _filled(f"{name}.{key}", value, checkpoints) for key, value in settings.items()}
        return [*(f"--config={path.resolve()}" for path in paths), *(as_argument(*pair) for pair in given.items())]


def read_matrix(path: str) -> Matrix:
    """Read the matrix in a YAML file.

    Raises:
        SettingError: if the file cannot be read or a setting does not fit.
    """
    names = {field.name for field in fields(Matrix)} - {"base"}
    content = load_settings(
        "matrix", path, names, ("runs", "evaluation", "folder", "results"), "experiments/digits.yaml"
    )
    return Matrix(**content, base=Path(path).parent)


def _settings(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings in config files and in the files that these name, the other arguments, and hashes of own files."""
    option = "--config="
    files = [argument.removeprefix(option) for argument in arguments if argument.startswith(option)]
    others = sorted(argument for argument in arguments if not argument.startswith(option))
    settings = {"files": content(files), "others": others}
    code = code_in([settings["files"], [_value(each.partition("=")[2]) for each in others]])
    return settings | ({"own_code": code} if code else {})  # notes of runs without own code remain as they were


def _value(text: str) -> Any:
    """The value that an argument of the command line has, as :func:`as_argument` writes it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _filled(name: str, value: Any, checkpoints: dict[str, str]) -> Any:
    """The value, in which each ``{NAME}`` at any depth is the path of the checkpoint for which it stands."""
    if isinstance(value, dict):
        return {key: _filled(f"{name}.{key}", part, checkpoints) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(f"{name}.{index}", part, checkpoints) for index, part in enumerate(value)]
    if not (isinstance(value, str) and value.startswith("{") and value.endswith("}")):
        return value
    remedy = f"prepare has no such run; it has {', '.join(checkpoints) or 'none'}"
    require(value[1:-1] in checkpoints, name, value, remedy)
    return checkpoints[value[1:-1]]
