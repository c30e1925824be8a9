"""Refuses settings of a class that jsonargparse would misread, and names the entry of a mapping that is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from textwrap import shorten
from typing import Any, get_args, get_origin

from jsonargparse import Namespace, _typehints
from jsonargparse._common import is_subclasses_disabled

from cli.missing_classes import CLASSES

_as_namespace = _typehints.subclass_spec_as_namespace
_adapt = _typehints.adapt_typehints
_SECTIONS = {"class_path", "init_args", "dict_kwargs"}


def install() -> None:
    """Apply these rules in every parser."""
    _typehints.subclass_spec_as_namespace = _without_others  # type: ignore[assignment]
    _typehints.subclasses_disabled_message = _not_of_class  # type: ignore[assignment]
    _typehints.adapt_typehints = _naming_entries  # type: ignore[assignment]


def _without_others(value: Any, *others: Any) -> Any:
    """Refuse settings beside a ``class_path``: jsonargparse would take them, and it, for settings of the base class."""
    if isinstance(value, dict | Namespace) and isinstance(value.get("class_path"), str):
        names = vars(value) if isinstance(value, Namespace) else value
        beside = [str(name) for name in names if name not in _SECTIONS and not str(name).startswith("__")]
        if beside:
            reason = f"settings beside it belong inside init_args: {shorten(', '.join(beside), 80)}"
            raise ValueError(f"{value['class_path']!r}; {reason}")
    return _as_namespace(value, *others)  # type: ignore[no-untyped-call]


def _not_of_class(kind: Any, class_path: str) -> str:
    """The error for a class in place of the settings of a dataclass, with the setting to which the class belongs."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    first = next((field.name for field in fields if field.default is dataclasses.MISSING), "class_path")
    path = CLASSES.get(class_path, class_path)
    return f"{class_path!r}; it is not of the class {kind.__name__}; give {{{first}: {{class_path: {path}}}}}"


def _naming_entries(value: Any, kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Adapt a value to a type, and add the name of a mapping's entry to its error."""
    if _is_one_of_list(value, kind):
        value = [value]  # whose errors name the class that is wrong
    try:
        if _names_another_class(value, kind):
            raise ValueError(_not_of_class(kind, value))
        return _adapt(value, kind, *args, **kwargs)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError) as error:
        failed = getattr(error, "failed", None)
        error.failed = value  # type: ignore[union-attr]
        entry = _entry(value, failed) if get_origin(kind) in (dict, Mapping) and failed is not None else None
        if entry is None:
            raise
        raise TypeError(f'Parser key "{entry}":\n{error}') from error


def _is_one_of_list(value: Any, kind: Any) -> bool:
    """Whether the settings of one class stand where a list of them is accepted, too."""
    kinds = get_args(kind)
    accepted = any(get_origin(each) is list and get_args(each)[0] in kinds for each in kinds)
    return accepted and isinstance(value, dict | Namespace) and "class_path" in value


def _names_another_class(value: Any, kind: Any) -> bool:
    """Whether a bare name, such as ``PGD``, stands where only the settings of one class are accepted."""
    closed = isinstance(kind, type) and dataclasses.is_dataclass(kind) and is_subclasses_disabled(kind)
    return closed and isinstance(value, str) and value.isidentifier() and value != kind.__name__


def _entry(mapping: Any, value: Any) -> str | None:
    """Name of the entry of a mapping that has a value; None if no entry has it."""
    if isinstance(mapping, _typehints.NestedArg):  # type: ignore[attr-defined]
        return str(mapping.key.split(".")[0])
    entries = mapping.items() if isinstance(mapping, Mapping) else ()
    return next((str(name) for name, part in entries if part is value), None)
