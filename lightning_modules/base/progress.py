"""Lightning's count of epochs and batches in a checkpoint, corrected where a run stops inside an epoch."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerFn


def correct_progress(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Let a run that goes on from the checkpoint take up the epoch where it is.

    Lightning closes the epoch in which ``max_steps``, ``max_time`` or an early stop ends a run, and would begin the
    next one on resuming. Of a validation that was stopped it would count the remaining batches only.

    Args:
        checkpoint: as Lightning has gathered it; its ``loops`` are changed in place.
        trainer: whose run it is of.
    """
    if trainer.state.fn != TrainerFn.FITTING or "loops" not in checkpoint:
        return
    progress = checkpoint["loops"]["fit_loop"]
    batches, epochs = progress["epoch_loop.batch_progress"], progress["epoch_progress"]
    if batches["current"]["ready"] < trainer.num_training_batches:
        for count in (epochs["current"], epochs["total"]):
            open_epochs = 1 if count["processed"] == count["ready"] else 0
            count["processed"] -= open_epochs
            count["completed"] = min(count["completed"], count["processed"])
    elif trainer.validating and not trainer.fit_loop.epoch_loop.val_loop.batch_progress.is_last_batch:
        # as it was behind the last training batch, before this validation began
        for count in (batches["current"], batches["total"]):
            count["completed"] = count["processed"] - 1
        validation = progress["epoch_loop.val_loop.batch_progress"]
        validation["is_last_batch"] = False
        for count in (validation["current"], validation["total"]):
            count.update(dict.fromkeys(count, 0))
