"""Validation and test as stages, with one set of hooks for both."""

from __future__ import annotations

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

    def is_due(self, stage: Stage, trainer: Trainer, batch_idx: int) -> bool:
        """Whether to process this batch."""
        limit = self.max_batches if stage == "val" else self.max_test_batches
        if stage not in self.stages or (limit is not None and batch_idx >= limit):
            return False
        if stage == "test" or trainer.state.fn == "validate":
            return True
        epoch, every = trainer.current_epoch + 1, self.every_n_epochs
        return not trainer.sanity_checking and every is not None and (epoch % every == 0 or epoch == trainer.max_epochs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the log folder here, because :func:`log_folder` must be called in all processes."""
        self.folder = log_folder(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if no validation of the training is due."""
        every, check, last = self.every_n_epochs, trainer.check_val_every_n_epoch, trainer.max_epochs
        if "val" not in self.stages or every is None or check is None or last is None or last < 1:
            return
        due = {*range(every, last + 1, every), last}
        if all(epoch % check for epoch in due):
            given = f"{type(self).__name__}.every_n_epochs: got {every}"
            after = f"trainer.check_val_every_n_epoch {check} and trainer.max_epochs {last}"
            rank_zero_warn(f"{given}; with {after} it never runs in this training; give a multiple of {check}")

    def _start(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        if stage in self.stages:
            self.on_start(stage, trainer, module)

    def _finish(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        if stage in self.stages:
            self.on_finish(stage, trainer, module)

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
