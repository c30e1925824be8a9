"""Checks before training that the metrics on which the run depends will be logged."""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from callbacks.checkpoint import named_metrics
from callbacks.evaluation.base import Evaluation
from lightning_modules.base import Batch, RobustClassifier, monitored_names
from robust.errors import SettingError, require
from robust.metric_names.registry import find
from robust.modes import attack_mode


class Monitors(Callback):
    """Checks that the metrics of checkpoints, their names, early stopping and schedules are logged, and the modes.

    The mode, ``min`` or ``max``, must prefer the better values. Names are checked after Lightning's sanity check.
    Evaluations that run only after some epochs are run on two images, to learn the names that they log. With
    ``num_sanity_val_steps`` 0 no name is checked; names of training metrics are never checked.
    """

    def __init__(self) -> None:
        self._batch: tuple[Batch, range] | None = None  # with the images' indices in the data

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that checkpoints and early stopping prefer the better values.

        Raises:
            SettingError: if one of them prefers the worse values of a metric.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if not isinstance(callback, ModelCheckpoint | EarlyStopping) or callback.monitor is None:
                continue
            name = "checkpoint" if isinstance(callback, ModelCheckpoint) else "EarlyStopping"
            info = find(callback.monitor)
            if info is not None and info.direction != "none":
                better = "max" if info.direction == "higher is better" else "min"
                remedy = f"{callback.monitor}: {info.direction}; give {better}"
                require(callback.mode == better, f"{name}.mode", callback.mode, remedy)

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Store two images of the sanity check."""
        if trainer.sanity_checking and batch_idx == 0:
            x, y = batch
            self._batch = (x[:2], y[:2]), pl_module.data_indices[:2]

    def on_sanity_check_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Compare the monitored metrics with those that validations log.

        Raises:
            SettingError: if a monitored metric is never logged, or is logged less often than a callback reads it.
        """
        batch, self._batch = self._batch, None
        logged = dict.fromkeys(trainer.callback_metrics, 1)
        uses = [use for use in _monitored(trainer) if not use[1].startswith("train/")]
        missing = [use for use in uses if not _matching(use[0], use[1], logged)]
        if not missing or batch is None:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if not isinstance(callback, Evaluation) or type(callback).__name__ in callback.skipped:
                continue
            if callback.every_n_epochs is not None:
                logged |= dict.fromkeys(_names(callback, pl_module, *batch), callback.every_n_epochs)
        for setting, name, every in missing:
            _check_logged(setting, name, every, logged)


def _check_logged(setting: str, name: str, every: int, logged: dict[str, int]) -> None:
    """Check that validations log a metric often enough; ``logged`` maps names to intervals in epochs."""
    all_names = f"validations log {', '.join(sorted(logged))}"
    matching = _matching(setting, name, logged)
    if matching:
        require(len(matching) == 1, setting, name, f"it names {', '.join(sorted(matching))}; give one of them")
        interval = logged[matching[0]]
        remedy = f"it is logged only every {interval} epochs; set its evaluation's every_n_epochs to {every}"
        require(every % interval == 0, setting, name, remedy)
    elif name.startswith("test/"):
        raise SettingError(setting, name, f"tests run after the training; give a metric of the validation: {all_names}")
    elif not name.startswith(("val/", "val_")):  # a training step may log it, unless only the prefix is missing
        require(f"val/{name}" not in logged, setting, name, f"did you mean val/{name}? {all_names}")
    else:
        near = difflib.get_close_matches(name.replace("val_", "val/", 1), logged, 1, 0.5)
        remedy = f"did you mean {near[0]}? " if near else ""
        raise SettingError(setting, name, f"{remedy}{all_names}")


def _matching(setting: str, name: str, logged: dict[str, int]) -> list[str]:
    """The metrics that a setting names; only ``checkpoint.monitor`` accepts ``*``."""
    if setting == "checkpoint.monitor":
        return fnmatch.filter(logged, name)
    return [name] if name in logged else []


def _monitored(trainer: Trainer) -> list[tuple[str, str, int]]:
    """Setting, name and interval in epochs of every metric that a callback reads; 0 if it reads the last alone."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    every = trainer.check_val_every_n_epoch or 1
    uses = [("lr_scheduler.monitor", name, every) for name in monitored_names(trainer)]
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            interval = max(callback._every_n_epochs, every)
            uses += [] if callback.monitor is None else [("checkpoint.monitor", callback.monitor, interval)]
            uses += [("checkpoint.filename", name, interval) for name in named_metrics(callback.filename)]
        elif isinstance(callback, EarlyStopping):
            uses.append(("EarlyStopping.monitor", callback.monitor, every))
        else:  # of a sweep, which reads them after the last epoch, where every evaluation runs
            uses += [("objectives", name, 0) for name in getattr(callback, "objectives", ())]
            uses += [("objectives", name, every) for name in getattr(callback, "pruned", ())]
    return uses


def _names(evaluation: Evaluation, module: RobustClassifier, batch: Batch, indices: range) -> list[str]:
    """The names of the metrics that an evaluation logs in validation."""
    rng = torch.random.get_rng_state()
    with attack_mode(module, "eval"):
        evaluation.evaluate_batch(module, batch, indices, 0)
        names = [f"val/{name}" for name in evaluation.compute(module)]
    evaluation.reset()
    torch.random.set_rng_state(rng)
    return names
