"""Corrects Lightning's counts of epochs and batches in a checkpoint of a run that stops inside an epoch."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn


def warn_of_ended_training(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Warn if a checkpoint's training had already all the epochs or steps of this run, which then trains nothing."""
    progress = checkpoint["loops"]["fit_loop"]
    epochs, steps = progress["epoch_progress"]["current"]["processed"], checkpoint["global_step"]
    for name, limit, done in (("max_epochs", trainer.max_epochs, epochs), ("max_steps", trainer.max_steps, steps)):
        if limit is not None and 0 <= limit <= done:
            remedy = "this run trains nothing; give more to go on"
            rank_zero_warn(f"trainer.{name}: got {limit}, and the checkpoint has {done}; {remedy}")


def correct_progress(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Correct the checkpoint so that a resumed run continues the epoch in which this one stops.

    Lightning closes the epoch in which ``max_steps``, ``max_time`` or an early stop ends a run, so that a resumed run
    would begin the next epoch. It would also skip a validation that was due or had begun.

    Args:
        checkpoint: Lightning's checkpoint; its ``loops`` change in place.
        trainer: trainer of the run.
    """
    if trainer.state.fn != TrainerFn.FITTING or "loops" not in checkpoint:
        return
    progress = checkpoint["loops"]["fit_loop"]
    batches, epochs = progress["epoch_loop.batch_progress"], progress["epoch_progress"]
    closed = epochs["current"]["processed"] == epochs["current"]["ready"]
    if closed and batches["current"]["ready"] < trainer.num_training_batches:
        for count in (epochs["current"], epochs["total"]):
            count["processed"] -= 1
            count["completed"] = min(count["completed"], count["processed"])
    elif not closed and _validation_is_open(trainer):
        for count in (batches["current"], batches["total"]):
            count["completed"] = count["processed"]
        validation = progress["epoch_loop.val_loop.batch_progress"]
        validation["is_last_batch"] = False
        for count in (validation["current"], validation["total"]):  # as if the validation stopped in its first batch
            count.update(ready=1, started=1, processed=0, completed=0)


def _validation_is_open(trainer: Trainer) -> bool:
    """Whether a validation is running, or is due after the last training batch."""
    loop = trainer.fit_loop.epoch_loop
    if trainer.validating:
        return not loop.val_loop.batch_progress.is_last_batch
    count: Any = loop.batch_progress.total
    after_batch = count.completed == count.processed - 1
    fetcher = trainer.fit_loop._data_fetcher
    return after_batch and fetcher is not None and loop._should_check_val_fx(fetcher)
