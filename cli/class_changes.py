"""Lets a setting that changes the class of an optimizer or schedule start from the new class's defaults.

jsonargparse passes the settings that both classes have on to the new class. An Adam without a weight decay in its
configuration would thus have the weight decay of a default SGD.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace, _typehints
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_discard = _typehints.discard_init_args_on_class_path_change


def _discard_all_of_optimizers(parser_or_action: Any, before: Any, after: Any) -> None:
    """Drop all settings of another optimizer or schedule; of other classes, those that the new class does not have."""
    if before and "init_args" in before and before["class_path"] != after["class_path"] and _is_optimization(before):
        before["init_args"] = Namespace()  # type: ignore[no-untyped-call]
    _discard(parser_or_action, before, after)  # type: ignore[no-untyped-call]


def _is_optimization(settings: Any) -> bool:
    """Whether the settings are those of an optimizer or a schedule."""
    kind = resolve_name(settings["class_path"])
    return isinstance(kind, type) and issubclass(kind, Optimizer | LRScheduler)


def install() -> None:
    """Apply this rule in every parser."""
    _typehints.discard_init_args_on_class_path_change = _discard_all_of_optimizers
