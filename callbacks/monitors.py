"""Checks before training that the metrics it depends on will be logged."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from callbacks.checkpoint import named_metrics
from callbacks.evaluation.base import Evaluation
from lightning_modules.base import Batch, RobustClassifier
from robust.errors import SettingError, require
from robust.modes import attack_mode


class Monitors(Callback):
    """Checks, after Lightning's sanity check, the metrics that checkpoints, their names and early stopping need.

    Evaluations that run only after some epochs are run on two images, to learn the names that they log. With
    ``num_sanity_val_steps`` 0 nothing is checked; metrics of training are never checked.
    """

    def __init__(self) -> None:
        self._batch: tuple[Batch, range] | None = None  # with the images' indices in the data

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
            SettingError: if a monitored metric is never logged, or less often than a callback reads it.
        """
        batch, self._batch = self._batch, None
        logged = dict.fromkeys(trainer.callback_metrics, 1)
        missing = [use for use in _monitored(trainer) if not use[1].startswith("train/") and use[1] not in logged]
        if not missing or batch is None:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, Evaluation) and callback.every_n_epochs is not None:
                logged |= dict.fromkeys(_names(callback, pl_module, *batch), callback.every_n_epochs)
        for setting, name, every in missing:
            if not name.startswith("val/"):  # a training step may log it, unless only the prefix is missing
                remedy = f"did you mean val/{name}? validations log {', '.join(sorted(logged))}"
                require(f"val/{name}" not in logged, setting, name, remedy)
            elif name not in logged:
                near = difflib.get_close_matches(name, logged, 1, 0.5)
                remedy = f"did you mean {near[0]}? " if near else ""
                raise SettingError(setting, name, f"{remedy}validations log {', '.join(sorted(logged))}")
            elif every % logged[name]:
                remedy = f"it is there every {logged[name]} epochs only; set its evaluation's every_n_epochs to {every}"
                raise SettingError(setting, name, remedy)


def _monitored(trainer: Trainer) -> list[tuple[str, str, int]]:
    """Setting, name and interval in epochs of every metric that a callback reads."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    every = trainer.check_val_every_n_epoch or 1
    uses = []
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            interval = max(callback._every_n_epochs, every)
            uses += [] if callback.monitor is None else [("checkpoint.monitor", callback.monitor, interval)]
            uses += [("checkpoint.filename", name, interval) for name in named_metrics(callback.filename)]
        elif isinstance(callback, EarlyStopping):
            uses.append(("EarlyStopping.monitor", callback.monitor, every))
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
