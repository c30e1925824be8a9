"""Descriptions of a run's optimizers, schedules and data as plain values, and their comparison with a checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pytorch_lightning import Trainer

from lightning_modules.base.inputs import data_module
from robust.errors import SettingError
from robust.schedules import EachStep

ResumeSettings = Literal["checkpoint", "config"]
Description = list[dict[str, Any]]


def describe_optimizers(trainer: Trainer) -> Description:
    """Class and settings of each configured optimizer and its schedule; call this before training changes them."""
    schedules = {id(config.scheduler.optimizer): config.scheduler for config in trainer.lr_scheduler_configs}
    return [
        {
            "class": _name(optimizer),
            "settings": [_group(group) for group in optimizer.param_groups],
            "schedule": _schedule(schedules.get(id(optimizer))),
        }
        for optimizer in trainer.optimizers
    ]


def describe_states(states: list[dict[str, Any]]) -> Description:
    """Settings of the optimizers whose states a checkpoint holds, for checkpoints without a description."""
    return [{"settings": [_group(group) for group in state["param_groups"]]} for state in states]


def describe_data(trainer: Trainer) -> dict[str, Any]:
    """Class, shape and size of the data set; empty if the trainer has loaders without a data module."""
    data = data_module(trainer)
    if data is None:
        return {}
    description: dict[str, Any] = {"class": _name(data)}
    for name in ("num_classes", "image_shape"):
        if hasattr(data, name):
            description[name] = _plain(getattr(data, name))
    if hasattr(data, "images") and trainer.state.fn == "fit":
        description["train_images"] = len(data.images("train"))
    return description


def require_same(setting: str, configured: Any, saved: Any, choice: ResumeSettings | None) -> None:
    """Refuse to resume with settings that differ from the checkpoint's, unless ``choice`` says which to use.

    Raises:
        SettingError: at the first setting that differs, with both values and the remedy.
    """
    if choice is not None:
        return
    for path, new, old in differences(configured, saved):
        remedy = f"the checkpoint has {old!r}; set resume_settings to checkpoint (use the old) or config (use the new)"
        raise SettingError(f"{setting}.{path}" if path else setting, new, remedy)


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path and both values of each difference between two nested plain values; keys that one lacks do not count."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in (key for key in one if key in other):
            yield from differences(one[key], other[key], f"{path}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from differences(first, second, f"{path}.{index}".lstrip("."))
    elif one != other:
        yield path, one, other


def _group(group: dict[str, Any]) -> dict[str, Any]:
    others = {name: _plain(value) for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
    return {"lr": _plain(group.get("initial_lr", group["lr"])), **others}


def _schedule(schedule: Any) -> dict[str, Any] | None:
    if schedule is None:
        return None
    inner = {"schedule": _name(schedule.schedule)} if isinstance(schedule, EachStep) else {}
    return {"class": _name(schedule), **inner, **_plain(schedule.state_dict())}


def _plain(value: Any) -> Any:
    """Numbers, strings and nested collections of them unchanged; anything else as the name of its class."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, bool | int | float | str | None):
        return value
    return float(value) if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else _name(value)


def _name(value: Any) -> str:
    kind = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
