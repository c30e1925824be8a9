"""Checks of the trainer's settings, since Lightning's own errors name neither the setting nor the remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Any, get_args

import torch
from jsonargparse import ArgumentParser, Namespace

from robust.errors import require

_LIMITS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
_STRATEGY = re.compile(r"auto|ddp(_find_unused_parameters_(true|false))?")
_TIME = re.compile(r"\d+:\d\d:\d\d:\d\d")
_FRACTION_OR_COUNT = "give a fraction in (0, 1] as 0.5, or a whole number of batches"


def read_whole_numbers(parser: ArgumentParser) -> None:
    """Read ``2`` as a whole number in settings that also accept a fraction.

    The parser tries types in their order, and ``typing`` caches ``Optional[Union[int, float]]`` in the order in which
    any package of the process first wrote it. So 1, a single batch, could be read as 1.0, all batches.
    """
    action: Any  # jsonargparse has no public attribute for the type
    for action in parser._actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if int in kinds and float in kinds:
            action._typehint = reduce(or_, sorted(kinds, key=lambda kind: kind is not int))


def check_trainer(trainer: Namespace, command: str, *, test_after_fit: bool = False) -> None:
    """Check settings that Lightning checks late, without naming them, or not at all.

    Args:
        trainer: parsed settings of the trainer.
        command: the subcommand.
        test_after_fit: whether a training ends with a test.

    Raises:
        SettingError: at the first wrong setting.
    """
    for name, fits, remedy in _RULES:
        value = trainer.get(name)
        require(value is None or fits(value), f"trainer.{name}", value, remedy)
    for part in _LIMITS.values():
        name = f"limit_{part}_batches"
        value = trainer.get(name)
        require(value is None or _is_limit(value), f"trainer.{name}", value, _FRACTION_OR_COUNT)
    for each in (command, *(["test"] if test_after_fit else [])):
        if each in _LIMITS:
            name = f"limit_{_LIMITS[each]}_batches"
            without = ", or leave test_after_fit out" if each != command else ""
            remedy = f"there would be nothing to {each}; {_FRACTION_OR_COUNT}{without}"
            require(trainer.get(name) != 0, f"trainer.{name}", trainer.get(name), remedy)
    given = trainer.get("callbacks") or []
    for callback in given if isinstance(given, list) else [given]:
        name = str(callback.get("class_path")).rpartition(".")[2] if isinstance(callback, Namespace) else ""
        require(name not in _REFUSED, "trainer.callbacks", name, _REFUSED.get(name, ""))
    _check_length(trainer, command)
    _check_devices(trainer)
    strategy = trainer.get("strategy")
    if isinstance(strategy, str):
        supported = "give one of auto, ddp, ddp_find_unused_parameters_true"
        reason = "sharded strategies are not supported, nor those that fork or spawn, which bring back weights alone"
        require(_STRATEGY.fullmatch(strategy) is not None, "trainer.strategy", strategy, f"{supported}; {reason}")


def num_processes(trainer: Namespace) -> int | None:
    """Number of processes of a run; None if it depends on the machine."""
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes", 1)
    return None if devices in (None, "auto", -1, "-1") else _count(devices) * int(nodes)


def _check_length(trainer: Namespace, command: str) -> None:
    if command != "fit":
        return
    for unit in ("epochs", "steps"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        fits = least is None or most in (None, -1) or least <= most
        require(fits, f"trainer.min_{unit}", least, f"give at most trainer.max_{unit}, which is {most}")
    every, interval = trainer.get("check_val_every_n_epoch"), trainer.get("val_check_interval")
    remedy = "give 1 or more epochs; without it trainer.val_check_interval must be a number of batches"
    fits = every is not None or (isinstance(interval, int) and interval >= 1)
    require(fits, "trainer.check_val_every_n_epoch", every, remedy)


def _check_devices(trainer: Namespace) -> None:
    devices, name = trainer.get("devices"), "trainer.devices"
    if trainer.get("accelerator") not in ("auto", "cpu", "gpu", "cuda", "mps"):
        return  # Lightning checks the devices of other accelerators
    on_gpu = _uses_gpu(trainer.accelerator)
    if devices in (None, "auto") or (on_gpu and devices in (-1, "-1")):
        return
    most = max(torch.cuda.device_count(), 1) if on_gpu else max(8, os.cpu_count() or 1)
    what = f"1 to {most} GPUs of this machine" if on_gpu else f"1 to {most} processes on the CPUs of this machine"
    fits = 1 <= _count(devices) <= most and (on_gpu or not isinstance(devices, list))
    require(fits, name, devices, f"give auto, or {what}")


def _uses_gpu(accelerator: str) -> bool:
    available = {"cuda": torch.cuda.device_count() > 0, "mps": torch.backends.mps.is_available()}
    available["gpu"] = available["auto"] = any(available.values())
    remedy = "torch finds none on this machine; give auto or cpu"
    require(accelerator == "auto" or available.get(accelerator, True), "trainer.accelerator", accelerator, remedy)
    return available.get(accelerator, False)


def _count(devices: Any) -> int:
    """Number of requested devices; 0 for a value that makes no sense."""
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int):
        return max(devices, 0)
    if re.fullmatch(r"\d+", devices):
        return int(devices)
    return len(devices.strip(",").split(",")) if re.fullmatch(r"\d+(,\d+)*,?", devices) else 0


def _is_limit(value: float | int) -> bool:
    return value >= 0 if isinstance(value, int) else 0 <= value <= 1


def _is_interval(value: Any) -> bool:
    if isinstance(value, str):
        return _is_time(value)
    if isinstance(value, int | float):
        return 0 < value <= 1 if isinstance(value, float) else value >= 1
    return True


def _is_time(value: Any) -> bool:
    return not isinstance(value, str) or (_TIME.fullmatch(value) is not None and set(value) > {"0", ":"})


def _from(least: int) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, int | float) or value >= least


def _is_length(value: Any) -> bool:
    return bool(value == -1 or value >= 1)


_REFUSED = {
    "BatchSizeFinder": "a smaller or larger batch is another training; leave it out and choose data.batch_size",
    "BackboneFinetuning": "methods have several networks and no backbone; freeze weights in your network's constructor",
}
_CLIP = "leave it out and set model.gradient_clip: methods step their optimizers themselves"
_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    ("max_epochs", _is_length, "give at least 1, or -1 for no end"),
    ("max_steps", _is_length, "give at least 1, or -1 for no end"),
    ("min_epochs", _from(0), "give 0 or more"),
    ("min_steps", _from(0), "give 0 or more"),
    ("max_time", _is_time, "give days:hours:minutes:seconds, as 00:12:00:00, above zero"),
    ("num_nodes", _from(1), "give the number of machines, at least 1"),
    ("fast_dev_run", _from(0), "give true, false, or a number of batches of at least 1"),
    ("overfit_batches", lambda value: value == 0, "leave it at 0 and use trainer.limit_train_batches"),
    ("val_check_interval", _is_interval, "give a fraction in (0, 1] of an epoch, or at least 1 batch"),
    ("check_val_every_n_epoch", _from(1), "give at least 1"),
    ("num_sanity_val_steps", _from(-1), "give 0 or more batches, or -1 for all"),
    ("log_every_n_steps", _from(0), "give 0 (never) or more"),
    ("accumulate_grad_batches", lambda value: value == 1, "leave it at 1 and set data.batch_size to that of a step"),
    ("gradient_clip_val", lambda value: value == 0, _CLIP),
    ("gradient_clip_algorithm", lambda value: False, _CLIP),
    ("reload_dataloaders_every_n_epochs", _from(0), "give 0 (never) or more epochs"),
    ("barebones", lambda value: value is False, "leave it out: runs write logs and checkpoints"),
    ("model_registry", lambda value: False, "leave it out: checkpoints are files"),
    (
        "profiler",
        lambda value: not isinstance(value, str) or value in ("simple", "advanced", "pytorch", "xla"),
        "give simple, advanced, pytorch or xla",
    ),
    ("default_root_dir", lambda value: str(value).strip() != "", "give a folder"),
]
