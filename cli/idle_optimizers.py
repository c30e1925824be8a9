"""Settings of optimizers that a method's own ``configure_optimizers`` does not read."""

from __future__ import annotations

from collections.abc import Iterable
from pkgutil import resolve_name
from types import CodeType
from typing import Any

from lightning_modules.base.descent import Descent
from robust.errors import require

_READ = ("optimizer", "lr_scheduler")


def drop_idle_optimizers(model: Any, given: Iterable[tuple[str, Any]]) -> None:
    """Drop ``optimizer`` and ``lr_scheduler`` where they have no effect, so that no record names them.

    Args:
        model: settings of the model; changed in place.
        given: names, without ``init_args``, and values of the settings that the command line and files give.

    Raises:
        SettingError: if one of the two is given and has no effect.
    """
    if not model or "class_path" not in model or not model.get("init_args"):
        return
    own = getattr(resolve_name(model["class_path"]), "configure_optimizers", None)
    code = getattr(own, "__code__", None)
    if own is Descent.configure_optimizers or code is None or _mentions(code, {*_READ, "super", "optimizer_specs"}):
        return
    for name in _READ:
        if name in model["init_args"]:
            value = next((value for key, value in given if f"{key}.".startswith(f"model.{name}.")), None)
            kind = model["class_path"].rpartition(".")[2]
            remedy = f"configure_optimizers of {kind} does not read it; leave it out, or override optimizer_specs"
            require(value is None, f"model.{name}", value, remedy)
            del model["init_args"][name]


def _mentions(code: CodeType, names: set[str]) -> bool:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return not names.isdisjoint(code.co_names) or any(_mentions(each, names) for each in inner)
