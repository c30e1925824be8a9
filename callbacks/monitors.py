"""Says before a training which of the metrics that it depends on it will not have."""

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
    """Checks, behind Lightning's sanity check, the metrics that checkpoints, their names and early stopping need.

    Evaluations that are made after some epochs only are tried on two images, to learn the names that they log. Nothing
    can be checked with ``num_sanity_val_steps`` 0, nor of metrics of training.
    """

    def __init__(self) -> None:
        self._batch: tuple[Batch, range] | None = None  # with its indices in the data

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Keep two images of the sanity check."""
        if trainer.sanity_checking and batch_idx == 0:
            x, y = batch
            self._batch = (x[:2], y[:2]), pl_module.data_indices[:2]

    def on_sanity_check_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Compare what is monitored with what validations log.

        Raises:
            SettingError: if something is never logged, or not whenever it is asked for.
        """
        batch, self._batch = self._batch, None
        logged = dict.fromkeys(trainer.callback_metrics, 1)
        wanted = [each for each in _monitored(trainer) if not each[1].startswith("train/") and each[1] not in logged]
        if not wanted or batch is None:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, Evaluation) and callback.every_n_epochs is not None:
                logged |= dict.fromkeys(_names(callback, pl_module, *batch), callback.every_n_epochs)
        for setting, name, every in wanted:
            if not name.startswith("val/"):  # a step of training may log it, but for the name of a validation's metric
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
    """Setting, name and how often it is asked for, in epochs, of every metric that a callback goes by."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    every = trainer.check_val_every_n_epoch or 1
    found = []
    for each in callbacks:
        if isinstance(each, ModelCheckpoint):
            often = max(each._every_n_epochs, every)
            found += [] if each.monitor is None else [("checkpoint.monitor", each.monitor, often)]
            found += [("checkpoint.filename", name, often) for name in named_metrics(each.filename)]
        elif isinstance(each, EarlyStopping):
            found.append(("EarlyStopping.monitor", each.monitor, every))
    return found


def _names(evaluation: Evaluation, module: RobustClassifier, batch: Batch, indices: range) -> list[str]:
    """The names of the metrics that an evaluation logs in validation."""
    rng = torch.random.get_rng_state()
    with attack_mode(module, "eval"):
        evaluation.evaluate_batch(module, batch, indices, 0)
        names = [f"val/{name}" for name in evaluation.compute(module)]
    evaluation.reset()
    torch.random.set_rng_state(rng)
    return names
