"""Learning-rate schedules of methods that step their own optimizers: by epoch, by step, or by a monitored metric."""

from __future__ import annotations

import warnings
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch.optim.lr_scheduler import ChainedScheduler, CyclicLR, OneCycleLR, ReduceLROnPlateau

from robust.errors import require
from robust.schedules import EachStep, PiecewiseLinear

BY_STEP = (EachStep, OneCycleLR, CyclicLR)


def step_schedules(trainer: Trainer, batch_idx: int, monitored: dict[str, float]) -> None:
    """Bring every schedule to where it is to be before batch ``batch_idx`` of the current epoch.

    Schedules by step move with every batch, others with every epoch; those of a metric with every validated epoch.
    It depends on the schedules' own counts alone, so that a resumed run goes on.

    Args:
        trainer: its schedules and its epoch are asked.
        batch_idx: of the batch that comes.
        monitored: metrics of the last validation, by name.

    Raises:
        SettingError: if a monitored metric is missing.
    """
    epoch, batches = trainer.current_epoch, trainer.num_training_batches
    for config in trainer.lr_scheduler_configs:
        schedule: Any = config.scheduler
        if isinstance(schedule, PiecewiseLinear):
            schedule.move_to(epoch + (batch_idx + 1) / batches)
        elif isinstance(schedule, ReduceLROnPlateau):
            validated = epoch // (trainer.check_val_every_n_epoch or 1)
            while schedule.last_epoch < validated:
                schedule.step(_value(schedule, monitored))
        else:
            done = epoch * int(batches) + batch_idx if by_step(config) else epoch
            with warnings.catch_warnings():  # it is no mistake that the first epochs leave out an optimizer
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                while schedule.last_epoch < done // config.frequency:
                    schedule.step()


def by_step(config: LRSchedulerConfig) -> bool:
    """Whether a schedule moves with every batch: by its ``interval``, or by its kind."""
    return config.interval == "step" or isinstance(config.scheduler, BY_STEP)


def monitored_names(trainer: Trainer) -> list[str]:
    """The metrics that schedules depend on."""
    return [config.scheduler.monitor for config in trainer.lr_scheduler_configs if _is_plateau(config)]  # type: ignore


def check_schedules(trainer: Trainer) -> None:
    """Check, before a training, that its schedules can be followed to its end.

    Raises:
        SettingError: if one lacks the metric that it depends on, ends too early, or has no count of its own.
    """
    planned = trainer.estimated_stepping_batches
    for config in trainer.lr_scheduler_configs:
        schedule: Any = config.scheduler
        if isinstance(schedule, ReduceLROnPlateau):
            remedy = "it depends on a metric; give pytorch_lightning.cli.ReduceLROnPlateau with its monitor"
            require(isinstance(getattr(schedule, "monitor", None), str), "lr_scheduler", "ReduceLROnPlateau", remedy)
        remedy = "it keeps no count to resume from; give torch.optim.lr_scheduler.SequentialLR"
        require(not isinstance(schedule, ChainedScheduler), "lr_scheduler", "ChainedScheduler", remedy)
        inner = schedule.schedule if isinstance(schedule, EachStep) else schedule
        if isinstance(inner, OneCycleLR) and planned != float("inf"):
            total = inner.total_steps
            remedy = f"the training has {planned} steps; give at least that"
            require(total >= planned, "lr_scheduler.total_steps", total, remedy)


def _is_plateau(config: LRSchedulerConfig) -> bool:
    return isinstance(config.scheduler, ReduceLROnPlateau)


def _value(schedule: Any, monitored: dict[str, float]) -> float:
    found = monitored.get(schedule.monitor)
    known = ", ".join(sorted(monitored)) or "none"
    require(found is not None, "lr_scheduler.monitor", schedule.monitor, f"the last validation logged {known}")
    assert found is not None
    return found
