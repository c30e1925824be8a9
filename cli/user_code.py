"""Errors in the user's own code, with the file, the line and the cause, which jsonargparse would hide."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import _typehints
from torch import nn

from cli.class_settings import classes_in
from robust.errors import SettingError

IMPORTS = "its module fails at"
BUILT = "its module builds this network when it is imported, before the seed is set; give a class or a function"
_import_object = _typehints.import_object  # type: ignore[attr-defined]
_LIBRARIES = (str(Path(traceback.__file__).parent), "site-packages", "<frozen ")


def install() -> None:
    """Let every parser report why a module cannot be imported, instead of calling its class unknown."""
    _typehints.import_object = import_or_explain  # type: ignore[attr-defined]


def import_or_explain(name: str, *args: Any, **kwargs: Any) -> Any:
    """The object at an import path.

    Raises:
        ImportError: if the module exists but its import fails, with the file, the line and the cause; or if the object
            is a network, whose weights would not depend on the seed.
    """
    try:
        found = _import_object(name, *args, **kwargs)  # type: ignore[no-untyped-call]
    except Exception as error:
        if not _module_fails(error, name):
            raise
        raise ImportError(f"{name!r}; {IMPORTS} {place_and_cause(error)}") from None
    if isinstance(found, nn.Module):
        raise ImportError(f"{name!r}; {BUILT}")
    return found


def _module_fails(error: Exception, name: str) -> bool:
    """Whether the code of an existing module raises the error; otherwise the module or its class does not exist."""
    if isinstance(error, SyntaxError):
        return True
    missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
    return not missing and any(frame.f_code.co_name == "<module>" for frame, _ in _imported(error))


def _imported(error: Exception) -> Iterator[tuple[FrameType, int]]:
    """The frames below the import of the name, without those of the program that imports it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    start = next(i for i, (frame, _) in enumerate(frames) if frame.f_code is _import_object.__code__)
    yield from frames[start + 1 :]


def place_and_cause(error: BaseException, tail: list[tuple[FrameType, int]] | None = None) -> str:
    """The innermost file and line outside of libraries, and the class and message of an error.

    Args:
        error: error to describe.
        tail: frames to search; by default all frames of its traceback.
    """
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}; correct it"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename} line {error.lineno}: {type(error).__name__}: {error.msg}; correct it"
    frames = list(traceback.walk_tb(error.__traceback__)) if tail is None else tail
    places = [(frame.f_code.co_filename, line) for frame, line in frames]
    file, line = next((place for place in reversed(places) if not _in_library(place[0])), places[-1])
    return f"{file} line {line}: {reason}"


def constructor_error(error: BaseException, config: dict[str, Any]) -> SettingError | None:
    """The error for a class or function of the configuration that fails while it is built; None for other errors.

    Args:
        error: first cause, as the constructor raised it.
        config: all settings as plain dicts and lists.
    """
    parts = {part: config.get(part) for part in ("model", "data")}
    parts["trainer.callbacks"] = config.get("trainer", {}).get("callbacks")
    built = [entry for part, settings in parts.items() for entry in classes_in(settings, part)]
    frames = list(traceback.walk_tb(error.__traceback__))
    for index in reversed(range(len(frames))):
        for path, kind, settings in built:
            if _builds(frames[index][0], kind):
                if missing := _not_given(kind, settings):
                    remedy = "not given; put it in the config file or on the command line"
                    return SettingError(f"{path}.{missing}", None, remedy)
                remedy = f"building it fails at {place_and_cause(error, frames[index:])}, or give other settings"
                return SettingError(path, f"{kind.__module__}.{kind.__qualname__}", remedy)
    return None


def _not_given(kind: Any, settings: dict[str, Any]) -> str | None:
    """The first required argument without a type, which the parser takes for None where it is not given."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:  # of a class in C
        return None
    untyped = [each for each in parameters if each.annotation is each.empty and each.default is each.empty]
    named = [each.name for each in untyped if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    return next((name for name in named if name in settings and settings[name] is None), None)


def _builds(frame: FrameType, kind: Any) -> bool:
    """Whether the frame is the constructor of the class ``kind``, or a call of the function ``kind``."""
    if not isinstance(kind, type):
        return frame.f_code is getattr(kind, "__code__", None)
    return frame.f_code.co_name == "__init__" and type(frame.f_locals.get("self")) is kind


def _in_library(file: str) -> bool:
    return any(part in file for part in _LIBRARIES)
