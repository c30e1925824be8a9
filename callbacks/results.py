"""The record of a run: a table on the terminal and ``results.json`` in the log folder."""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks._folders import claim_folder, is_dry, log_folder
from callbacks._own_code import own_code
from callbacks.evaluation.base import Evaluation
from callbacks.machine import describe_device, git_commit, installed_versions
from lightning_modules.base import num_images
from robust.folders import replacing
from robust.metric_names.registry import ARROWS, find
from robust.metrics.confidence import wilson_interval

COST = ("parameters", "seconds", "forward_equivalents")


class Results(Callback):
    """Writes the metrics and settings of a run at the end of ``fit``, ``validate`` and ``test``.

    ``results.json`` maps each of these names to a record; a repetition in the same folder gets a number, such as
    ``test-2``. A record has:

    - ``metrics``: value by name; ``robust.metric_names.registry`` has units and meanings. A training has those of its
      last validation if no step came after it
    - ``method``, ``seed``, ``command``, ``commit``, ``versions`` and ``device``
    - ``epochs`` of the run's own training; null if it had none
    - ``checkpoint``: path of the evaluated weights; null for the weights at the end of the run's own training
    - ``config``: all settings, and ``sources``: where the settings that are not defaults come from
    - ``class_names``: names of the classes; null if the data does not name them
    - ``own_code``: hash of the file of each class and function of the user's, by its path
    - ``optimizers``: optimizers and schedules with the settings that the training used
    - ``training_cost``: parameters, seconds and passes (``lightning_modules.base.training_cost``); null if not known
    - ``samples``: number of images of each stage
    - ``wall_time``: seconds. A resumed training counts from its first start, without pauses and without the work that
      a stop lost; a :class:`~callbacks.ResumableTest` that continues counts its last process alone
    - ``not_finite``: ``nan`` or ``inf`` by the path of each number that is not finite; the number itself is null

    The record of a test has the cost of the training among its metrics, and also:

    - ``outcomes`` and ``margins`` of single images (``callbacks.evaluation.outcomes``)
    - ``skipped``: the reason why an evaluation or a part of it did not run, by its name
    - ``intervals``: 95 % confidence intervals of accuracies on all test images, if ``data.test_images`` draws some

    Attributes:
        config: the run's settings as plain data; the command line sets it.
        initial_checkpoint: path of the checkpoint that ``ckpt_path`` names by a word such as ``last``; the command line
            sets it.
        sources: names of the settings that come from the ``command line``, a ``file`` or a ``checkpoint``; all others
            have their defaults.
    """

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.sources: dict[str, list[str]] = {}
        self.initial_checkpoint: str | None = None
        self._start, self._fitting, self._trained = 0.0, False, False
        self._validated = -1  # step of the training at its last validation
        self._folder = Path()
        self._own: set[Path] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock, and claim the folder.

        Raises:
            SettingError: if the folder holds another run.
        """
        self._start, self._fitting = time.perf_counter(), stage == "fit"
        git_commit()  # cached, so that a long training records the code that it started with
        self._folder = log_folder(trainer)
        if self._folder not in self._own:
            claim_folder(trainer, self._checkpoint(trainer))
        self._own.add(self._folder)

    def state_dict(self) -> dict[str, Any]:
        """Seconds of the training so far."""
        return {"seconds": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the clock of a resumed training continue from the checkpoint's."""
        if self._fitting:
            self._start -= state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if a resumed run asks for another seed, which has no effect."""
        given, trained = self.config.get("seed_everything"), self._seed(pl_module)
        if trainer.ckpt_path is not None and given is not None and given != trained:
            rank_zero_warn(f"seed_everything: got {given}; a resumed training keeps its seed, {trained}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the training, and its last validation if no step came after it."""
        self._trained = True
        self._record(trainer, pl_module, "fit", {"train": trainer.train_dataloader, "val": trainer.val_dataloaders})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a validation that is not part of training; of one that is, note the step."""
        self._validated = trainer.global_step
        if trainer.state.fn == "validate":
            self._record(trainer, pl_module, "validate", {"val": trainer.val_dataloaders})

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the cost of the training of the tested weights."""
        cost: dict[str, Any] = getattr(pl_module, "training_cost", None) or {}
        for name in COST if cost else ():
            pl_module.log(f"test/training_cost/{name}", torch.tensor(float(cost[name])), sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the test."""
        self._record(trainer, pl_module, "test", {"test": trainer.test_dataloaders})

    def _record(self, trainer: Trainer, module: LightningModule, stage: str, loaders: dict[str, Any]) -> None:
        evaluations = _evaluations(trainer)
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        if stage == "fit":
            self._drop_outdated(metrics, trainer)
        first = {name: _first(loader) for name, loader in loaders.items()}
        sized = {name: loader for name, loader in first.items() if num_images(loader) is not None}
        samples = {name: _samples(loader, trainer, name) for name, loader in sized.items()}
        data = getattr(module, "data_module", None)
        # the first batches of a limited test are no random sample of all images
        drawn = "test" in sized and samples["test"] == getattr(data, "test_images", None)
        limited = {f"test/{name}" for each in evaluations if each.max_test_batches is not None for name in each.logged}
        covered = {name: value for name, value in metrics.items() if name not in limited}
        intervals = _intervals(covered, samples["test"], len(first["test"].dataset)) if drawn else {}
        if not trainer.is_global_zero:
            return
        record = {
            "metrics": metrics,
            "command": shlex.join(["python", *sys.argv]).replace(f"{Path.cwd()}/", ""),  # true on other machines too
            "method": type(module).__name__,
            "epochs": _epochs(trainer) if self._trained else None,
            "checkpoint": None if self._trained else self._checkpoint(trainer),
            "seed": self._seed(module),
            "commit": git_commit(),
            "versions": {"python": platform.python_version(), **installed_versions()},
            "device": describe_device(trainer),
            "optimizers": getattr(module, "used_optimizers", []),
            "training_cost": getattr(module, "training_cost", None),
            "class_names": getattr(data, "class_names", None),
            "samples": samples,
            "wall_time": round(time.perf_counter() - self._start, 1),
            "config": self.config,
            "sources": self.sources,
            "own_code": own_code(self.config),
            **(_of_evaluations(trainer) | {"intervals": intervals} if stage == "test" else {}),
        }
        path = self._folder / "results.json"
        if not is_dry(trainer):
            add_record(path, stage, record)
        self._print(f"Results of {stage} ({record['wall_time']:.0f} s)", metrics, intervals)
        if not is_dry(trainer):
            Console().print(f"Written to {path}", soft_wrap=True, markup=False)

    def _drop_outdated(self, metrics: dict[str, float], trainer: Trainer) -> None:
        """Drop metrics of earlier weights than the training's last ones; warn if they are those of all validations."""
        old = self.outdated(trainer) & metrics.keys()
        if old and self._validated != trainer.global_step:
            unlike = "not those of the last weights, and not in results.json"
            steps = f"step {self._validated} of {trainer.global_step}"
            remedy = "end with a validation to record them, or run train.py validate with the last checkpoint"
            rank_zero_warn(f"the last validation was at {steps}: its metrics are {unlike}; {remedy}")
        for name in old:
            del metrics[name]

    def outdated(self, trainer: Trainer) -> set[str]:
        """Names of the validation metrics that are of earlier weights than the training's last ones."""
        if self._validated != trainer.global_step:
            return {name for name in trainer.callback_metrics if name.startswith("val/")}
        return {f"val/{name}" for each in _evaluations(trainer) for name in each.outdated}

    def _checkpoint(self, trainer: Trainer) -> str | None:
        """The initial checkpoint as it was given, unless by a word such as ``last``: then its path."""
        given = self.initial_checkpoint or self.config.get("ckpt_path") or trainer.ckpt_path
        return None if given is None else str(given)

    def _seed(self, module: LightningModule) -> Any:
        """The training's seed, which a resumed run and a test keep; without a training, that of the command."""
        seed = getattr(module, "training_seed", None)
        return self.config.get("seed_everything") if seed is None else seed

    def _print(self, title: str, metrics: dict[str, float], intervals: dict[str, tuple[float, float]]) -> None:
        of_some = "; 95 % intervals for all test images" if intervals else ""
        table = Table(title=title, caption=f"↑ higher is better, ↓ lower is better{of_some}")
        table.add_column("metric", overflow="fold")
        table.add_column("value", justify="right")
        table.add_column("unit")
        for name, value in metrics.items():
            info = find(name)
            arrow = ARROWS[info.direction] if info else ""
            unit = info.unit if info and info.unit not in ("fraction", "none") else ""
            text = f"{value:.2%}" if info and info.unit == "fraction" else f"{value:.4g}"
            if name in intervals:
                text += " [{:.1%}, {:.1%}]".format(*intervals[name])
            table.add_row(escape(f"{name} {arrow}".rstrip()), escape(text), unit)
        Console().print(table)


def _epochs(trainer: Trainer) -> float:
    """Epochs of a training; a part of one in which it ended, to two decimals.

    Lightning counts such an epoch as whole, but not if a resumed training has no step left; the epochs that have begun
    are correct in both cases.
    """
    ready, batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready, trainer.num_training_batches
    begun: int = trainer.fit_loop.epoch_progress.current.ready
    return round(begun - 1 + ready / batches, 2) if 0 < ready < batches < float("inf") else trainer.current_epoch


def _first(loader: Any) -> Any:
    """The loader, or the first one of a list or a ``CombinedLoader``."""
    loaders = getattr(loader, "flattened", loader)
    return loaders[0] if isinstance(loaders, list) else loaders


def _samples(loader: Any, trainer: Trainer, name: str) -> int:
    """Number of images, over all processes, that a stage takes from its loader, in training in each epoch."""
    limits = {"train": trainer.num_training_batches, "val": trainer.num_val_batches, "test": trainer.num_test_batches}
    limit, size = limits[name], num_images(loader) or 0
    batches = limit[0] if isinstance(limit, list) else limit
    own = (
        loader.batch_size or getattr(loader.batch_sampler, "batch_size", 0)
    ) * trainer.world_size  # for a loader without our sampler
    batch_size = getattr(loader.sampler, "batch_size", own)
    complete = name == "train" and hasattr(loader.sampler, "size")  # our sampler has no incomplete batch in training
    every = batch_size == 0 or (batches >= len(loader) and not complete)
    return size if every else min(int(batches), len(loader)) * batch_size


def _intervals(metrics: dict[str, float], count: int, total: int) -> dict[str, tuple[float, float]]:
    """95 % confidence intervals of accuracies on ``total`` images, of which ``count`` were tested; none if all were."""
    infos = {name: find(name) for name in metrics} if count < total else {}
    return {
        name: wilson_interval(metrics[name], count, total)
        for name, info in infos.items()
        if info is not None
        and info.unit == "fraction"
        and info.direction == "higher is better"
        and name.startswith(("test/accuracy/", "test/certified_accuracy/"))
        and math.isfinite(metrics[name])
    }


def _of_evaluations(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Outcomes and margins of single images, by metric, and the reasons why evaluations were left out, by name."""
    evaluations = _evaluations(trainer)
    recorded = [evaluation.recorded for evaluation in evaluations]
    return {
        "outcomes": {name: value for images in recorded for name, value in images.outcomes.items()},
        "margins": {name: value for images in recorded for name, value in images.margins.items()},
        "skipped": {name: why for evaluation in evaluations for name, why in evaluation.skipped.items()},
    }


def _evaluations(trainer: Trainer) -> list[Evaluation]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Evaluation)]


def add_record(path: Path, stage: str, record: dict[str, Any]) -> None:
    """Add a record to the file, atomically and as strict JSON."""
    records = json.loads(path.read_text()) if path.exists() else {}
    name, number = stage, 1
    while name in records:
        number += 1
        name = f"{stage}-{number}"
    not_finite: dict[str, str] = {}
    records[name] = {**_strict(record, "", not_finite), "not_finite": not_finite}
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(records, indent=2, allow_nan=False) + "\n")


def _strict(value: Any, path: str, not_finite: dict[str, str]) -> Any:
    """Replace numbers that are not finite by None, and write them to ``not_finite`` by their path."""
    if isinstance(value, dict):
        return {str(key): _strict(part, f"{path}.{key}".lstrip("."), not_finite) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part, f"{path}.{index}", not_finite) for index, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        not_finite[path] = str(value)
        return None
    return value
