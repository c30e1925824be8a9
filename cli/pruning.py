"""Stops a trial of a sweep that is worse than the other trials."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from pytorch_lightning import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from optuna import Trial

current: ContextVar[tuple[Trial, str] | None] = ContextVar("current", default=None)


class Pruning(Callback):
    """Reports the objective of the current trial after each validation.

    Raises:
        TrialPruned: if the study's pruner stops the trial.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metric."""
        running = current.get()
        if running is None or trainer.sanity_checking:
            return
        import optuna  # optional

        trial, name = running
        if name in trainer.callback_metrics:
            trial.report(float(trainer.callback_metrics[name]), trainer.current_epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
