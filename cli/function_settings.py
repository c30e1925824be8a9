"""Accepts settings that a function with ``**kwargs``, such as ``timm.create_model``, does not name.

jsonargparse accepts these under ``dict_kwargs`` only; here they are given like all others. The function itself reports
those that it does not accept when it is called.
"""

from __future__ import annotations

import inspect
from typing import Any

from jsonargparse import Namespace, _typehints

from cli.user_code import import_or_explain

_adapt = _typehints.adapt_class_type


def install() -> None:
    """Apply this rule in every parser."""
    _typehints.adapt_class_type = _adapt_with_keywords  # type: ignore[assignment]


def _adapt_with_keywords(
    value: Any, serialize: bool, instantiate: bool, sub_add_kwargs: Any, prev_val: Any = None, **others: Any
) -> Any:
    before, value = (_typehints.subclass_spec_as_namespace(given) for given in (prev_val, value))  # type: ignore[no-untyped-call]
    function = import_or_explain(value.class_path)
    keywords = inspect.isfunction(function) and any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(function).parameters.values()
    )
    if keywords and not serialize and not instantiate:
        _move_unknown(value, _known(function, sub_add_kwargs))
        if before and before.get("class_path") == value.class_path:
            given = {**(before.get("dict_kwargs") or {}), **(value.get("dict_kwargs") or {})}
            if given:
                value["dict_kwargs"] = given
    return _adapt(value, serialize, instantiate, sub_add_kwargs, prev_val=prev_val, **others)  # type: ignore[no-untyped-call]


def _known(function: Any, sub_add_kwargs: Any) -> set[str]:
    """Names of the settings that the function itself, or a function to which it passes its arguments, declares."""
    parser = _typehints.ActionTypeHint.get_class_parser(function, sub_add_kwargs)  # type: ignore[no-untyped-call]
    return {action.dest.split(".")[0] for action in parser._actions}


def _move_unknown(value: Namespace, known: set[str]) -> None:
    """Move the settings that are not ``known`` from ``init_args`` to ``dict_kwargs``."""
    arguments = value.get("init_args")
    if isinstance(arguments, _typehints.NestedArg):  # type: ignore[attr-defined]
        if arguments.key.split(".")[0] not in known:
            value.pop("init_args")
            value["dict_kwargs"] = {arguments.key: arguments.val}
    elif arguments:
        unknown = [name for name in vars(arguments) if name not in known]
        moved = {name: arguments.pop(name) for name in unknown}
        if moved:
            value["dict_kwargs"] = {**(value.get("dict_kwargs") or {}), **moved}
