"""Optimizers, schedules and data of a run as plain values, and what decides where a checkpoint has others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pytorch_lightning import Trainer

from robust.errors import SettingError
from robust.schedules import EachStep

ResumeSettings = Literal["checkpoint", "config"]
Described = list[dict[str, Any]]


def describe_optimizers(trainer: Trainer) -> Described:
    """Class and settings of each optimizer as it was configured, and of its schedule; to be asked before a training."""
    schedules = {id(config.scheduler.optimizer): config.scheduler for config in trainer.lr_scheduler_configs}
    return [
        {
            "class": _name(optimizer),
            "settings": [_group(group) for group in optimizer.param_groups],
            "schedule": _schedule(schedules.get(id(optimizer))),
        }
        for optimizer in trainer.optimizers
    ]


def described_by_states(states: list[dict[str, Any]]) -> Described:
    """What the optimizers' states in a checkpoint say of them, for one without a description."""
    return [{"settings": [_group(group) for group in state["param_groups"]]} for state in states]


def describe_data(trainer: Trainer) -> dict[str, Any]:
    """What tells one data set from another; empty where the loaders were given without a data module."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is None:
        return {}
    found: dict[str, Any] = {"class": _name(data)}
    for name in ("num_classes", "image_shape"):
        if hasattr(data, name):
            found[name] = _plain(getattr(data, name))
    if hasattr(data, "images") and trainer.state.fn == "fit":
        found["train_images"] = len(data.images("train"))
    return found


def require_same(setting: str, configured: Any, saved: Any, decides: ResumeSettings | None) -> None:
    """Refuse a resumption whose settings differ from the checkpoint's, unless it is said which of them hold.

    Raises:
        SettingError: naming the first that differs, both values and ``resume_settings``.
    """
    if decides is not None:
        return
    for path, new, old in differences(configured, saved):
        remedy = f"the checkpoint has {old!r}; set resume_settings to checkpoint (keep its) or config (take the new)"
        raise SettingError(f"{setting}.{path}" if path else setting, new, remedy)


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two nests of plain values differ: the path and both values. What one of them lacks is left out."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in (key for key in one if key in other):
            yield from differences(one[key], other[key], f"{path}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from differences(mine, theirs, f"{path}.{index}".lstrip("."))
    elif one != other:
        yield path, one, other


def _group(group: dict[str, Any]) -> dict[str, Any]:
    kept = {name: _plain(value) for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
    return {"lr": _plain(group.get("initial_lr", group["lr"])), **kept}


def _schedule(schedule: Any) -> dict[str, Any] | None:
    if schedule is None:
        return None
    inner = {"schedule": _name(schedule.schedule)} if isinstance(schedule, EachStep) else {}
    return {"class": _name(schedule), **inner, **_plain(schedule.state_dict())}


def _plain(value: Any) -> Any:
    """Numbers, words and nests of them; of anything else its class."""
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
