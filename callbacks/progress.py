"""The progress inside a batch of an evaluation, in Lightning's progress bar."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_info

from callbacks._stages import Stage, StageCallback
from callbacks.trial import trial_seconds
from robust.progress import unwatch, watch

SECONDS = 0.5  # shortest time between two moves of the bar
SHORT = 20.0  # seconds; a shorter remaining time is not printed


def _staged(trainer: Trainer) -> list[StageCallback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, StageCallback)]


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


class Progress(Callback):
    """Moves the bar of validation and test inside a batch too, so that it shows the remaining time from the start.

    Attacks and evaluations report their steps (:mod:`robust.progress`). Without a terminal or a progress bar no bar is
    drawn. A long test prints an estimate of its time before it starts, from a trial on a few images, and after its
    first batch an estimate of the remaining time.
    """

    def __init__(self) -> None:
        self._shown = 0.0

    def on_validation_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Watch the evaluations of this batch."""
        self._watch("val", trainer, batch_idx)

    def on_test_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Watch the evaluations of this batch; before the first and the second batch, estimate the time."""
        if batch_idx == 0 and (seconds := trial_seconds(trainer, pl_module, batch) or 0.0) >= SHORT:
            rank_zero_info(f"Test: about {_duration(seconds)}, estimated from a trial on a few images")
        if batch_idx == 1:
            self._estimate(trainer)
        self._watch("test", trainer, batch_idx)

    def on_validation_epoch_end(self, *_: Any) -> None:
        """Stop watching."""
        unwatch()

    def on_test_epoch_end(self, *_: Any) -> None:
        """Stop watching."""
        unwatch()

    def on_exception(self, *_: Any) -> None:
        """Stop watching."""
        unwatch()

    def _estimate(self, trainer: Trainer) -> None:
        """Print the time of the remaining test batches, estimated from the first batch."""
        if not math.isfinite(trainer.num_test_batches[0]):  # a loader without a length
            return
        batches = int(trainer.num_test_batches[0])
        seconds = sum(
            callback.first_seconds * sum(callback.is_due("test", trainer, index) for index in range(1, batches))
            for callback in _staged(trainer)
        )
        if seconds >= SHORT:
            rank_zero_info(
                f"Test: about {_duration(seconds)} for the other {batches - 1} batches, estimated from the first batch"
            )

    def _watch(self, stage: Stage, trainer: Trainer, batch_idx: int) -> None:
        if trainer.progress_bar_callback is None or not sys.stdout.isatty():
            return
        self._shown = time.monotonic()
        watch(
            lambda fraction: self._show(trainer, batch_idx + fraction),
            total=sum(callback.is_due(stage, trainer, batch_idx) for callback in _staged(trainer)),
        )

    def _show(self, trainer: Trainer, batches: float) -> None:
        """Move the bar to a number of batches, at most twice a second."""
        if time.monotonic() - self._shown < SECONDS:
            return
        self._shown = time.monotonic()
        bar = trainer.progress_bar_callback
        if isinstance(bar, RichProgressBar) and bar.progress is not None:
            task = bar.test_progress_bar_id if trainer.testing else bar.val_progress_bar_id
            if task is not None:
                bar.progress.update(task, completed=batches)
                bar.refresh()
        elif isinstance(bar, TQDMProgressBar):
            line = bar.test_progress_bar if trainer.testing else bar.val_progress_bar
            line.n = round(batches, 2)
            line.refresh()
