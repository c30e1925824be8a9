"""Callbacks of a sweep's trials."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from pytorch_lightning import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from optuna import Trial

current: ContextVar[tuple[Trial, list[str]] | None] = ContextVar("current", default=None)


class Objectives(Callback):
    """Names the metrics that the sweep reads, so that a wrong name is an error before the training."""

    def __init__(self) -> None:
        running = current.get()
        self.objectives = [] if running is None else running[1]


class Pruning(Callback):
    """Reports the first objective of the current trial after each validation, and stops one that is worse than others.

    Raises:
        TrialPruned: if the study's pruner stops the trial.
    """

    def __init__(self) -> None:
        running = current.get()
        self.pruned = [] if running is None else running[1][:1]  # which every validation must log

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metric."""
        running = current.get()
        if running is None or trainer.sanity_checking:
            return
        import optuna  # optional

        trial, (name, *_) = running
        if name in trainer.callback_metrics:
            trial.report(float(trainer.callback_metrics[name]), trainer.current_epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
