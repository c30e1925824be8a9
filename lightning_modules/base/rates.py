"""Learning-rate schedules in manual optimization: per epoch, per step, or by a monitored metric."""

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
    """Step every schedule to its state before batch ``batch_idx`` of the current epoch.

    Some schedules advance with every batch, those of a validation's metric with every validated epoch, and all others
    with every epoch. Only the schedules' own counts determine how many steps are due, so that a resumed run continues
    them.

    Args:
        trainer: trainer that holds the schedules.
        batch_idx: index of the next batch in the epoch.
        monitored: metrics of the last epoch and validation, by name.

    Raises:
        SettingError: if a monitored metric is missing.
    """
    epoch, batches = trainer.current_epoch, trainer.num_training_batches
    for config in trainer.lr_scheduler_configs:
        schedule: Any = config.scheduler
        if isinstance(schedule, PiecewiseLinear):
            schedule.move_to(epoch + (batch_idx + 1) / batches)
        elif isinstance(schedule, ReduceLROnPlateau):
            measured = epoch if _is_of_training(schedule) else epoch // (trainer.check_val_every_n_epoch or 1)
            if schedule.last_epoch < measured:
                schedule.last_epoch = measured - 1  # in a resumed run, a new schedule has not seen earlier metrics
                schedule.step(_value(schedule, monitored))
        else:
            done = epoch * int(batches) + batch_idx if by_step(config) else epoch
            with warnings.catch_warnings():  # some methods do not step every optimizer in the first epochs
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                while schedule.last_epoch < done // config.frequency:
                    schedule.step()


def by_step(config: LRSchedulerConfig) -> bool:
    """Whether a schedule advances with every batch, by its ``interval`` or its class."""
    return config.interval == "step" or isinstance(config.scheduler, BY_STEP)


def monitored_names(trainer: Trainer) -> list[str]:
    """The metrics on which schedules depend."""
    return [config.scheduler.monitor for config in trainer.lr_scheduler_configs if _is_plateau(config)]  # type: ignore


def check_monitors(trainer: Trainer) -> None:
    """Check that the schedules by a metric have a monitor, before Lightning's sanity check asks for it.

    Raises:
        SettingError: if one of them is PyTorch's own class.
    """
    remedy = "it depends on a metric; give pytorch_lightning.cli.ReduceLROnPlateau with its monitor"
    for config in filter(_is_plateau, trainer.lr_scheduler_configs):
        given = isinstance(getattr(config.scheduler, "monitor", None), str)
        require(given, "lr_scheduler", type(config.scheduler).__name__, remedy)


def check_schedules(trainer: Trainer) -> None:
    """Check that the schedules last until the end of the training and can be resumed.

    Raises:
        SettingError: if a schedule ends too early, cannot be resumed, lacks the metric that it needs, is inside another
            one that cannot move it, or counts batches while the number of batches in an epoch is not known.
    """
    uncounted = trainer.num_training_batches == float("inf")
    planned = trainer.estimated_stepping_batches
    for config in trainer.lr_scheduler_configs:
        schedule: Any = config.scheduler
        by_batch = isinstance(schedule, PiecewiseLinear) or by_step(config)
        remedy = "the loader has no length, and this schedule counts batches; set trainer.limit_train_batches"
        require(not (by_batch and uncounted), "lr_scheduler", type(schedule).__name__, remedy)
        if isinstance(schedule, ReduceLROnPlateau) and not _is_of_training(schedule):
            _require_validations(trainer)
        remedy = "it has no count from which it could resume; give torch.optim.lr_scheduler.SequentialLR"
        require(not isinstance(schedule, ChainedScheduler), "lr_scheduler", "ChainedScheduler", remedy)
        for part in _parts(schedule):
            remedy = f"{type(part).__name__} cannot move inside another schedule; give it alone"
            fits = not isinstance(part, PiecewiseLinear | ReduceLROnPlateau)
            require(fits, "lr_scheduler", type(schedule).__name__, remedy)
        inner = schedule.schedule if isinstance(schedule, EachStep) else schedule
        if isinstance(inner, OneCycleLR) and planned != float("inf"):
            total = inner.total_steps
            remedy = f"the training has {planned} steps; give at least that"
            require(total >= planned, "lr_scheduler.total_steps", total, remedy)


def check_training_monitors(trainer: Trainer, known: set[str]) -> None:
    """Check that the training logs the metrics of training on which schedules depend.

    Args:
        trainer: trainer that holds the schedules.
        known: names of the metrics that the steps so far have logged.

    Raises:
        SettingError: if one of them is missing.
    """
    for name in monitored_names(trainer):
        remedy = f"the first step of the training logged {', '.join(sorted(known)) or 'none'}; give one of them"
        require(not name.startswith("train/") or name in known, "lr_scheduler.monitor", name, remedy)


def _parts(schedule: Any) -> list[Any]:
    """The schedules inside a schedule."""
    parts = [schedule.schedule] if isinstance(schedule, EachStep) else list(getattr(schedule, "_schedulers", ()))
    return [each for part in parts for each in (part, *_parts(part))]


def _require_validations(trainer: Trainer) -> None:
    """Check that there are validations for a schedule by a metric, in epochs that are known."""
    remedy = "ReduceLROnPlateau steps after validated epochs; {}, or choose a schedule without a metric"
    seconds = getattr(trainer, "_val_check_time_interval", None)
    wrong: dict[str, tuple[Any, bool, str]] = {
        "limit_val_batches": (trainer.limit_val_batches, trainer.limit_val_batches == 0, "validate some batches"),
        "check_val_every_n_epoch": (None, trainer.check_val_every_n_epoch is None, "give a number"),
        "val_check_interval": (f"{seconds} seconds", seconds is not None, "give a number"),
    }
    for name, (value, is_wrong, what) in wrong.items():
        require(not is_wrong, f"trainer.{name}", value, remedy.format(what))
    loop = trainer.fit_loop.epoch_loop.val_loop
    if loop._data_source.is_defined():
        loop.setup_data()  # a resumed run, which has no sanity check, has not loaded them yet
    counts = trainer.num_val_batches
    batches = sum(counts) if isinstance(counts, list) else counts
    require(batches > 0, "data", "no validation batches", remedy.format("give a loader for validation"))


def _is_of_training(schedule: Any) -> bool:
    """Whether a schedule by a metric needs no validation."""
    return str(schedule.monitor).startswith("train/")


def _is_plateau(config: LRSchedulerConfig) -> bool:
    return isinstance(config.scheduler, ReduceLROnPlateau)


def _value(schedule: Any, monitored: dict[str, float]) -> float:
    value = monitored.get(schedule.monitor)
    known = ", ".join(sorted(monitored)) or "none"
    last = "training" if _is_of_training(schedule) else "last validation"
    require(value is not None, "lr_scheduler.monitor", schedule.monitor, f"the {last} logged {known}")
    assert value is not None
    return value
