"""Lightning's count of epochs and batches in a checkpoint, corrected where a run stops inside an epoch."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerFn


def correct_progress(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Let a run that goes on from the checkpoint take up the epoch where it is.

    Lightning closes the epoch in which ``max_steps``, ``max_time`` or an early stop ends a run, and would begin the
    next one on resuming. It would leave out a validation that was due or had begun.

    Args:
        checkpoint: as Lightning has gathered it; its ``loops`` are changed in place.
        trainer: whose run it is of.
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
        for count in (validation["current"], validation["total"]):  # stopped in its first batch, as Lightning has it
            count.update(ready=1, started=1, processed=0, completed=0)


def _validation_is_open(trainer: Trainer) -> bool:
    """Whether a validation goes on, or is due behind the batch that has just been trained on."""
    loop = trainer.fit_loop.epoch_loop
    if trainer.validating:
        return not loop.val_loop.batch_progress.is_last_batch
    count: Any = loop.batch_progress.total
    behind_batch = count.completed == count.processed - 1
    fetcher = trainer.fit_loop._data_fetcher
    return behind_batch and fetcher is not None and loop._should_check_val_fx(fetcher)
