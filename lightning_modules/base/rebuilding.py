"""Saves a module's settings in its checkpoints, and builds the module again from a checkpoint."""

from __future__ import annotations

import inspect
import math
import warnings
from pathlib import Path
from pkgutil import resolve_name
from textwrap import shorten
from types import FrameType
from typing import Any, Self

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser

from robust.checkpoints import read_saved
from robust.errors import SettingError, require

NAME = "checkpoint_path"
KEY = "model"
_REMEDY = "give a checkpoint that fit wrote"
_OLD = "it holds no settings of its model, as of older versions; build the module and call load_state_dict"


class Rebuilding(pl.LightningModule):
    """A module whose checkpoints hold its settings.

    Attributes:
        constructor_settings: ``class_path`` and ``init_args`` as plain data, in which networks and other objects are
            such mappings, too. The command line sets this. For a module that was built in Python, ``init_args`` has the
            plain arguments, and ``objects`` the names of the other arguments. The values are those at the time when the
            constructor calls this one, so a constructor must not assign to its arguments before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.constructor_settings = _given_settings(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings without ``weights``, the file of initial weights: the checkpoint has its own weights."""
        arguments = {name: value for name, value in self.constructor_settings["init_args"].items() if name != "weights"}
        checkpoint[KEY] = {**self.constructor_settings, "init_args": arguments}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: torch.device | str = "cpu", **settings: Any
    ) -> Self:
        """Build the module of a checkpoint, including networks and settings, with its trained weights.

        Args:
            checkpoint_path: path of a file that ``fit`` or a trainer wrote.
            map_location: device of the weights.
            **settings: arguments of the constructor that replace the checkpoint's. A module that was built in Python
                from objects, such as networks, needs these objects here.

        Raises:
            SettingError: if the file is not such a checkpoint, is of another class, or its module cannot be built; for
                ``hparams_file``, ``strict`` and ``weights_only``.
        """
        for name in settings.keys() & {"hparams_file", "strict", "weights_only"}:
            remedy = "all weights must fit, and no code of a checkpoint runs; leave Lightning's argument out"
            raise SettingError(name, settings[name], remedy)
        path = str(checkpoint_path)
        content = read_saved(path, NAME, _REMEDY, map_location)
        fits = isinstance(content, dict) and isinstance(content.get("state_dict"), dict) and "method" in content
        require(fits, NAME, path, f"it is not a checkpoint of a training; {_REMEDY}")
        module = _build(cls, content.get(KEY), settings, path)
        kind = type(module).__name__
        remedy = f"it is of {kind}, which is not a {cls.__name__}; call {kind}.load_from_checkpoint"
        require(isinstance(module, cls), NAME, path, remedy)
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"])
        assert isinstance(module, cls)
        return module.to(map_location)


def _build(cls: type, described: Any, settings: dict[str, Any], path: str) -> pl.LightningModule:
    """Build the module of a description; ``settings`` replace some of its arguments."""
    require(isinstance(described, dict) and "class_path" in described, NAME, path, _OLD)
    arguments = {**described.get("init_args", {}), **settings}
    missing = [name for name in described.get("objects", []) if name not in settings]
    example = f"load_from_checkpoint(path, {missing[0] if missing else ''}=...)"
    remedy = f"its module was built in Python from {', '.join(missing)}; give them as in {example}"
    require(not missing, NAME, path, remedy)
    try:
        if "objects" in described:
            built: pl.LightningModule = _class(cls, described["class_path"])(**arguments)
            return built
        if objects := sorted(name for name, value in arguments.items() if not is_plain(value)):
            raise SettingError(objects[0], "an object", "give class_path and init_args, as in the checkpoint")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Rebuilding, "module", required=True)  # type: ignore[no-untyped-call]
        parsed = parser.parse_object({"module": {"class_path": described["class_path"], "init_args": arguments}})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: pl.LightningModule = parser.instantiate(parsed).module
        made.constructor_settings = {"class_path": described["class_path"], "init_args": arguments}  # type: ignore[assignment]
        return made
    except SettingError:
        raise
    except Exception as error:  # jsonargparse, an import or a constructor raised it
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = shorten(str(cause), 300)
        remedy = "its classes must be importable, with the settings of its training"
        raise SettingError(NAME, path, f"its module cannot be built ({reason}); {remedy}") from error


def _class(cls: type, path: str) -> Any:
    """The class at a path; ``cls`` itself if it has that path, since a class in a script cannot be imported."""
    return cls if path == _path(cls) else resolve_name(path)


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _given_settings(module: object) -> dict[str, Any]:
    """Class and arguments of the module's outermost constructor, which is running."""
    given, defaults = _arguments(module)
    plain = {name: _as_plain(value) for name, value in given.items() if is_plain(value)}
    changed = (name for name, value in given.items() if name not in plain and value is not defaults.get(name))
    return {"class_path": _path(type(module)), "init_args": plain, "objects": sorted(changed)}


def _arguments(module: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the outermost constructor and the defaults of the whole chain of constructors."""
    frame: FrameType | None = inspect.currentframe()
    given: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    while frame is not None:
        if frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is module:
            names, _, keywords, values = inspect.getargvalues(frame)
            given = {name: values[name] for name in names[1:]} | (values[keywords] if keywords else {})
        frame = frame.f_back
    for kind in reversed(type(module).__mro__):
        if "__init__" in vars(kind):
            parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
            defaults |= {parameter.name: parameter.default for parameter in parameters}
    return given, defaults


def is_plain(value: Any) -> bool:
    """Whether a value is a finite number, a text, None, or consists of nested lists and dicts of these."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(part) for part in value)
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _as_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_plain(part) for key, part in value.items()}
    return [_as_plain(part) for part in value] if isinstance(value, list | tuple) else value
