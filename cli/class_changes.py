"""Another optimizer or schedule starts from its own defaults.

jsonargparse gives the settings that two classes have in common to the new class. An Adam without a weight decay in its
configuration would thus have that of a default SGD.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace, _typehints
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_discard = _typehints.discard_init_args_on_class_path_change


def _discard_all_of_optimizers(parser_or_action: Any, before: Any, after: Any) -> None:
    """Drop all settings of the optimizer or schedule ``before`` another class, else those that the new class lacks."""
    if before and "init_args" in before and before["class_path"] != after["class_path"] and _is_kept_apart(before):
        before["init_args"] = Namespace()  # type: ignore[no-untyped-call]
    _discard(parser_or_action, before, after)  # type: ignore[no-untyped-call]


def _is_kept_apart(settings: Any) -> bool:
    kind = resolve_name(settings["class_path"])
    return isinstance(kind, type) and issubclass(kind, Optimizer | LRScheduler)


def install() -> None:
    """Let every parser follow this rule."""
    _typehints.discard_init_args_on_class_path_change = _discard_all_of_optimizers
