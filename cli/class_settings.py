"""Checks settings of optimizers and schedules, and all numbers of our classes, before anything is built."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from inspect import isclass
from pkgutil import resolve_name
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from robust.errors import SettingError, require
from robust.schedules import EachStep

OURS = ("robust.", "lightning_modules.", "datamodules.", "callbacks.", "torch.optim.")
TRIED_STEPS = 3


def check_classes(config: Any, name: str) -> None:
    """Check the settings of all classes in a config, nested ones included.

    Args:
        config: settings as plain dicts and lists.
        name: full name of ``config``.

    Raises:
        SettingError: if a number is NaN or infinite, or an optimizer or a schedule cannot be built from its settings.
    """
    for path, kind, settings in classes_in(config, name):
        ours = f"{kind.__module__}.".startswith(OURS)
        if ours:
            check_finite(settings, path)
        if isclass(kind) and issubclass(kind, Optimizer):
            _check_optimizer(kind, settings, path)
        elif isclass(kind) and issubclass(kind, LRScheduler | ReduceLROnPlateau) and ours:
            _check_schedule(kind, settings, path)


def mappings_in(config: Any, name: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Full name, mapping and settings of every mapping; the settings of a class are its ``init_args``."""
    if isinstance(config, list):
        for index, part in enumerate(config):
            yield from mappings_in(part, f"{name}.{index}")
    elif isinstance(config, dict):
        settings = config.get("init_args") or {} if "class_path" in config else config
        yield name, config, settings
        for key, value in settings.items():
            yield from mappings_in(value, f"{name}.{key}")


def classes_in(config: Any, name: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Full name, class and settings of every mapping with a ``class_path``."""
    for path, mapping, settings in mappings_in(config, name):
        if "class_path" in mapping:
            yield path, resolve_name(mapping["class_path"]), settings


def with_path(error: SettingError, config: dict[str, Any]) -> SettingError:
    """Replace a bare argument's name in the error by the full name of the setting, if exactly one setting matches.

    The name ``data.NAME`` is replaced in the same way if NAME is a setting of a data module inside another one.

    Args:
        error: error of a class that does not know the names on the command line.
        config: all settings as plain dicts and lists.
    """
    name, _, rest = str(error).partition(": got ")
    if name.startswith("data."):
        return _with_inner_path(error, name, rest, config.get("data"))
    given = rest.split("; ")[0]
    parts = {part: config.get(part) for part in ("model", "data")}
    trainer = config.get("trainer")
    parts["trainer.callbacks"] = trainer.get("callbacks") if isinstance(trainer, dict) else None
    names = {
        f"{path}.{name}"
        for part, settings in parts.items()
        for path, _, own in mappings_in(settings, part)
        if name in own and given in _printed(own[name])
    }
    if len(names) == 1:
        error.args = (f"{names.pop()}: got {rest}",)
    return error


def _with_inner_path(error: SettingError, name: str, rest: str, data: Any) -> SettingError:
    inner = name.removeprefix("data.")
    paths = [path for path, _, settings in mappings_in(data, "data") if inner.split(".")[0] in settings]
    if len(paths) == 1:
        error.args = (f"{paths[0]}.{inner}: got {rest}",)
    return error


def _printed(value: Any) -> set[str]:
    """Texts that errors may print for a value: a list also as a tuple, an object by its class name."""
    if isinstance(value, dict) and "class_path" in value:
        return {repr(value["class_path"].split(".")[-1])}
    return {repr(value), repr(tuple(value))} if isinstance(value, list) else {repr(value)}


def check_finite(value: Any, name: str) -> None:
    """Refuse NaN and infinite numbers, in lists and dicts too, except in the settings of nested classes.

    Raises:
        SettingError: at the first such number.
    """
    if isinstance(value, float):
        require(math.isfinite(value), name, value, "give a finite number")
    elif isinstance(value, dict) and "class_path" not in value:
        for key, part in value.items():
            check_finite(part, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for part in value:
            check_finite(part, name)


def _check_optimizer(kind: type[Optimizer], settings: dict[str, Any], name: str) -> None:
    for setting in ("lr", "momentum", "weight_decay", "dampening", "eps"):
        value = settings.get(setting)
        negative = isinstance(value, int | float) and value < 0
        require(not negative, f"{name}.{setting}", value, "give 0 or more")
    momentum = settings.get("momentum") or 0
    require(momentum < 1, f"{name}.momentum", momentum, "give less than 1; otherwise steps grow without limit")
    remedy = "it needs closures or sparse gradients; give an optimizer such as torch.optim.SGD or Adam"
    special = kind.__name__ in ("LBFGS", "SparseAdam")
    require(not special, name, kind.__name__, remedy)
    remedy = "no method differentiates through its steps; leave it out"
    require(not settings.get("differentiable"), f"{name}.differentiable", True, remedy)
    _call(lambda: kind([torch.nn.Parameter(torch.zeros(1))], **settings), settings, name, kind)


def _check_schedule(kind: Any, settings: dict[str, Any], name: str) -> None:
    if kind is EachStep or not _is_plain(settings):
        return  # check_classes also visits the nested schedules
    for setting, least in (("step_size", 1), ("gamma", 0), ("T_max", 1), ("T_0", 1), ("total_iters", 1)):
        value = settings.get(setting)
        if isinstance(value, int | float):
            require(value >= least, f"{name}.{setting}", value, f"give {least} or more")
    settings = {"max_lr": 0.1, **settings} if kind.__name__ == "OneCycleLR" else settings
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule: Any = _call(lambda: kind(optimizer, **settings), settings, name, kind)
        for _ in range(TRIED_STEPS):
            metric = () if isinstance(schedule, LRScheduler) and not isinstance(schedule, ReduceLROnPlateau) else (1.0,)
            _call(lambda metric=metric: schedule.step(*metric), settings, name, kind)  # type: ignore[misc]
    rate = optimizer.param_groups[0]["lr"]
    remedy = f"after {TRIED_STEPS} steps from 0.1, the learning rate is {rate}; give other settings"
    require(0 <= rate < math.inf, name, settings, remedy)


def _call(function: Callable[[], Any], settings: dict[str, Any], name: str, kind: type) -> Any:
    """Call ``function``, and turn torch's errors into a :class:`SettingError` that names the settings."""
    try:
        return function()
    except (ValueError, TypeError, ZeroDivisionError, IndexError, RuntimeError) as error:
        if isinstance(error, SettingError):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        given = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
        raise SettingError(name, f"{kind.__name__} with {given}", f"{reason}; give other settings") from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return "class_path" not in value and all(_is_plain(part) for part in value.values())
    return all(_is_plain(part) for part in value) if isinstance(value, list) else True
