"""Validation and test as stages, with one set of hooks for both."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from callbacks._folders import log_folder
from lightning_modules.base import RobustClassifier
from robust.errors import require
from robust.progress import advance

Stage = Literal["val", "test"]


def in_last_epoch(trainer: Trainer) -> bool:
    """Whether a validation at the end of an epoch is the last of the training, by its epochs or steps."""
    return trainer.current_epoch + 1 == trainer.max_epochs or 0 <= trainer.max_steps <= trainer.global_step


def tested_loader(trainer: Trainer) -> Any:
    """The first loader of a test."""
    return trainer.test_loop._combined_loader.flattened[0]  # type: ignore[union-attr]


def due_epochs(trainer: Trainer, every: int) -> set[int] | None:
    """The epochs, from 1, in which something is due that is due every so many epochs and at the end of the training.

    It is due in validations, which this takes to be in every epoch. None if the length of the training or the times of
    the validations are not known.
    """
    batches, max_steps = trainer.num_training_batches, trainer.max_steps
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs or 0
    by_steps = max_steps / max(batches, 1) if max_steps >= 0 else math.inf
    length = min(epochs, by_steps)
    if not 0 < length < math.inf or getattr(trainer, "_val_check_time_interval", None) is not None:
        return None
    due, last = set(range(every, math.floor(length) + 1, every)), math.ceil(length)
    interval = min(trainer.val_check_batch or batches, batches)
    trained = max_steps - (last - 1) * batches  # batches of the last epoch, if steps end it
    in_last = trained >= interval and (last % every == 0 or last == epochs)
    return due | {last} if length == epochs or in_last or trained % interval == 0 else due


class StageCallback(Callback):
    """A callback on batches of validation and test; subclasses implement :meth:`on_batch`.

    It runs in tests, in ``train.py validate``, and in validation after some epochs of training; never in the sanity
    check.

    Args:
        every_n_epochs: interval, in epochs of training, at which it runs in validation; it also runs after the last
            epoch. None: never in training.
        max_batches: maximum number of batches of each process in validation; None for all.
        max_test_batches: maximum number of batches of each process in a test; None for all.

    Attributes:
        stages: the stages in which it runs.
        folder: the run's log folder.
        first_seconds: time of the first batch of the last test, in seconds.

    Raises:
        SettingError: if a setting is below 1.
    """

    stages: ClassVar[tuple[Stage, ...]] = ("val", "test")

    def __init__(
        self, every_n_epochs: int | None = None, max_batches: int | None = None, max_test_batches: int | None = None
    ) -> None:
        self.every_n_epochs, self.max_batches, self.max_test_batches = every_n_epochs, max_batches, max_test_batches
        for setting in ("every_n_epochs", "max_batches", "max_test_batches"):
            value = getattr(self, setting)
            require(value is None or value >= 1, f"{type(self).__name__}.{setting}", value, "give at least 1")
        self.folder = Path()
        self.first_seconds = 0.0

    def on_start(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        """Prepare for the batches of a stage."""

    def on_batch(self, stage: Stage, trainer: Trainer, module: RobustClassifier, batch: Any, batch_idx: int) -> None:
        """Process a batch, after the module's step."""

    def on_finish(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        """Report after the last batch of a stage, even if no batch was due."""

    def check_test(self, trainer: Trainer, module: Any, loader: Any) -> None:
        """Check the settings of a test by its loader: at its start, and before a training that a test follows.

        Raises:
            SettingError: if a setting does not fit the test.
        """

    def is_due(self, stage: Stage, trainer: Trainer, batch_idx: int) -> bool:
        """Whether to process this batch."""
        limit = self.max_batches if stage == "val" else self.max_test_batches
        if stage not in self.stages or (limit is not None and batch_idx >= limit):
            return False
        if stage == "test" or trainer.state.fn == "validate":
            return True
        every = self.every_n_epochs
        if trainer.sanity_checking or every is None:
            return False
        return (trainer.current_epoch + 1) % every == 0 or in_last_epoch(trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the log folder here, because :func:`log_folder` must be called in all processes."""
        self.folder = log_folder(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if no validation of the training is due."""
        every, check = self.every_n_epochs, trainer.check_val_every_n_epoch
        if "val" not in self.stages or every is None or check is None:
            return
        due = due_epochs(trainer, every)
        if due is None or any(epoch % check == 0 for epoch in due):
            return
        limits = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps}
        ends = [f"trainer.{name} {value}" for name, value in limits.items() if value not in (None, -1)]
        remedy = f"give a multiple of {check}" if due else "no validation is at its last step; end with a validation"
        given = f"{type(self).__name__}.every_n_epochs: got {every}"
        after = " and ".join([f"trainer.check_val_every_n_epoch {check}", *ends])
        rank_zero_warn(f"{given}; with {after} it never runs in this training; {remedy}")

    def _start(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        if stage in self.stages:
            self.on_start(stage, trainer, module)

    def _finish(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        if stage in self.stages:
            self.on_finish(stage, trainer, module)

    def on_test_start(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Check the settings of the test."""
        if "test" in self.stages:
            self.check_test(trainer, pl_module, tested_loader(trainer))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Start the validation."""
        self._start("val", trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Start the test."""
        self._start("test", trainer, pl_module)

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Process a validation batch if it is due."""
        if self.is_due("val", trainer, batch_idx):
            self.on_batch("val", trainer, pl_module, batch, batch_idx)
            advance()

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Process a test batch if it is due."""
        if self.is_due("test", trainer, batch_idx):
            start = time.perf_counter()
            self.on_batch("test", trainer, pl_module, batch, batch_idx)
            advance()
            if batch_idx == 0:
                self.first_seconds = time.perf_counter() - start

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Finish the validation."""
        self._finish("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Finish the test."""
        self._finish("test", trainer, pl_module)
