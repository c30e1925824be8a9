"""Checks of a run's folders, checkpoint settings and batch sizes."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from robust.errors import SettingError, require
from robust.folders import check_writable


def check_folders(config: dict[str, Any]) -> None:
    """Check that the run can write to all its folders.

    Args:
        config: all settings as plain dicts and lists.

    Raises:
        SettingError: at the first folder that is not writable.
    """
    trainer = config["trainer"]
    check_writable(trainer.get("default_root_dir") or Path.cwd(), "trainer.default_root_dir")
    folder = config["checkpoint"].get("dirpath")
    if folder is not None and "://" not in folder:
        check_writable(folder, "checkpoint.dirpath")
    loggers = trainer.get("logger")
    loggers = loggers if isinstance(loggers, list) else [loggers]
    for index, logger in enumerate(loggers):
        folder = logger.get("init_args", {}).get("save_dir") if isinstance(logger, dict) else None
        if isinstance(folder, str) and "://" not in folder:
            check_writable(
                folder, "trainer.logger.save_dir" if len(loggers) == 1 else f"trainer.logger.{index}.save_dir"
            )


def check_checkpoint_settings(checkpoint: Namespace) -> None:
    """Check checkpoint settings that Lightning checks late, without naming the setting, or not at all.

    Raises:
        SettingError: at the first wrong setting.
    """
    name, filename = "checkpoint.filename", checkpoint.get("filename")
    if filename is not None:
        require(filename.strip() != "" and "\0" not in filename, name, filename, "give a name, such as {epoch}")
        try:
            list(string.Formatter().parse(filename))
        except ValueError as error:
            raise SettingError(name, filename, f"{error}; close each {{ and }}, as in {{epoch}}") from error
    folder = checkpoint.get("dirpath")
    require(folder is None or str(folder).strip() != "", "checkpoint.dirpath", folder, "give a folder, or leave it out")
    mode = checkpoint.get("mode")
    require(mode in ("min", "max"), "checkpoint.mode", mode, "give min or max")
    most, monitor = checkpoint.get("save_top_k"), checkpoint.get("monitor")
    require(most >= -1, "checkpoint.save_top_k", most, "give -1 (all), 0 (none) or more")
    fits = monitor is not None or most in (-1, 0, 1)
    require(fits, "checkpoint.save_top_k", most, "set checkpoint.monitor to the metric that ranks the checkpoints")
    for unit in ("every_n_epochs", "every_n_train_steps"):
        value = checkpoint.get(unit)
        require(value is None or value >= 0, f"checkpoint.{unit}", value, "give 0 (never) or more")
    given = {unit: checkpoint.get(unit) for unit in ("every_n_epochs", "every_n_train_steps", "train_time_interval")}
    given = {unit: str(value) for unit, value in given.items() if value}
    require(len(given) <= 1, "checkpoint", given, "give only one of these intervals")


def check_batch_sizes(data: dict[str, Any], processes: int | None, subcommand: str) -> None:
    """Check that the batch sizes of a subcommand are multiples of the number of processes.

    Raises:
        SettingError: if a batch size is not a multiple.
    """
    for name in ("batch_size", "eval_batch_size") if subcommand == "fit" else ("eval_batch_size",):
        size = data.get("init_args", {}).get(name)
        if isinstance(size, int) and processes:
            remedy = f"it counts the images of all {processes} processes: give a multiple of {processes}"
            require(size % processes == 0, f"data.{name}", size, remedy)
