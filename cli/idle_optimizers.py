"""Settings of optimizers that a method's own ``configure_optimizers`` does not read."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import unwrap
from pathlib import Path
from pkgutil import resolve_name
from types import CodeType
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn

from lightning_modules import TrainingModule
from robust.errors import require

_NAMES = ("optimizer", "lr_scheduler")
Given = list[tuple[str, Any]]


def drop_idle_optimizers(model: Any, command_line: Given, files: Given, *, trains: bool) -> None:
    """Drop ``optimizer`` and ``lr_scheduler`` where they have no effect, so that no record names them.

    Args:
        model: settings of the model; changed in place.
        command_line: names, without ``init_args``, and values of the settings that the command line gives.
        files: those that files give, with which a run may be repeated; a training warns of them.
        trains: whether the command trains.

    Raises:
        SettingError: if a training's command line gives one of the two, and it has no effect.
    """
    settings = model.get("init_args") if model and "class_path" in model else None
    if not settings or not any(name in settings for name in _NAMES) or _reads_optimizers(model["class_path"]):
        return
    kind = model["class_path"].rpartition(".")[2]
    remedy = f"configure_optimizers of {kind} does not read it; leave it out, or override optimizer_specs"
    for name in _NAMES:
        given = next((value for key, value in command_line if f"{key}.".startswith(f"model.{name}.")), None)
        require(given in (None, "null") or not trains, f"model.{name}", given, remedy)
        covering = [_settings_text(str(value)) for key, value in command_line if key == "model"]
        in_file = any(f"{key}.".startswith(f"model.{name}.") and value is not None for key, value in files)
        if trains and (in_file or any(name in text for text in covering)):
            rank_zero_warn(f"model.{name}: {remedy}")
        settings.pop(name, None)


def _settings_text(model: str) -> str:
    """The text of the settings in a value of ``--model``: a mapping, or the path of a file; none in a class."""
    if model.endswith((".yaml", ".yml")) and Path(model).is_file():
        return Path(model).read_text(encoding="utf-8")
    return model if model.startswith("{") else ""


def _reads_optimizers(path: str) -> bool:
    """Whether a class has our ``configure_optimizers``, or code of its own that may read the two settings."""
    kind = resolve_name(path)
    if not isinstance(kind, type) or not issubclass(kind, TrainingModule):
        return True
    own = kind.__mro__[
        : next(i for i, base in enumerate(kind.__mro__) if base.__module__.startswith("lightning_modules"))
    ]
    if not any("configure_optimizers" in vars(base) for base in own):
        return True
    members = [(name, member) for base in own for name, member in vars(base).items()]
    for name, member in members:
        code = getattr(unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member)), "__code__", None)
        others = {"super", "configure_optimizers", "optimizer_specs"} if name == "configure_optimizers" else set()
        if isinstance(code, CodeType) and not {*_NAMES, *others}.isdisjoint(_words(code)):
            return True
    return False


def _words(code: CodeType) -> Iterator[str]:
    """Names, parameters and strings in a function and in the functions within it."""
    yield from code.co_names
    yield from code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _words(constant)
