"""Settings and networks as plain values that are equal in another process: saved results of one are not another's."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust.passes import CountingHook

OF_PROJECT = ("robust", "lightning_modules", "callbacks", "datamodules")
MOST = 200  # objects that are entered; of later ones the class counts
_PLAIN = (bool, int, str, type(None))
_OWN = {"training", *vars(nn.Module())}


def structure(network: nn.Module, seen: dict[int, int] | None = None) -> list[Any]:
    """The modules of a network in order, each with its class, settings and the names of its hooks.

    Weights and buffers are left out. Functions count by their names, not by their code.

    >>> structure(nn.ReLU()) == structure(nn.ReLU()), structure(nn.ReLU()) == structure(nn.Tanh())
    (True, False)
    """
    seen = {} if seen is None else seen
    return [
        [name, _named(type(module)), _attributes(module, seen), _hooks(module)]
        for name, module in network.named_modules()
    ]


def described(value: object, seen: dict[int, int] | None = None) -> Any:
    """Settings as plain values that are equal for equal settings: objects by class and attributes.

    Private attributes are those of a user's class: this project's own keep what they compute there. Of what has neither
    attributes nor a text of its own, such as a lock, the class counts alone.

    Args:
        value: a setting.
        seen: numbers of the objects that were described before, by their identities: each is described once.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float | complex):
        return repr(value)  # not a number is not equal to itself
    if isinstance(value, np.generic):
        return described(value.item())
    if isinstance(value, Tensor | np.ndarray):
        return [list(value.shape), str(value.dtype), digest([torch.as_tensor(value)])]
    if inspect.isroutine(value) or isinstance(value, type | ModuleType | logging.Logger):
        return _named(value)
    seen = {} if seen is None else seen
    if id(value) in seen:
        return f"object {seen[id(value)]}"
    if len(seen) >= MOST:
        return _named(type(value))
    seen[id(value)] = len(seen)
    inner = partial(described, seen=seen)
    if isinstance(value, Mapping):
        return {str(name): inner(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [inner(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(each) for each in value), key=str)
    if isinstance(value, partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    text = [] if hasattr(value, "__dict__") or " at 0x" in repr(value) else [repr(value)]
    weights = [digest(value.state_dict().values()), structure(value, seen)] if isinstance(value, nn.Module) else []
    return [_named(type(value)), _attributes(value, seen), *text, *weights]


def digest(tensors: Iterable[Tensor]) -> str:
    """Checksum of tensors of any type and layout."""
    result = hashlib.sha256()
    for tensor in tensors:
        dense = tensor.detach().cpu().to_dense() if tensor.layout is not torch.strided else tensor.detach().cpu()
        result.update(f"{tuple(dense.shape)} {dense.dtype}".encode())
        result.update(dense.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def _attributes(owner: object, seen: dict[int, int]) -> dict[str, Any]:
    of_project = any(kind.__module__.partition(".")[0] in OF_PROJECT for kind in type(owner).__mro__)
    ignored = {*_OWN, "_trainer", "_fabric"} if isinstance(owner, nn.Module) else ()
    items = getattr(owner, "__dict__", {}).items()
    kept = [each for each in items if each[0] not in ignored and not (of_project and each[0].startswith("_"))]
    return {name: described(value, seen) for name, value in kept}


def _named(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _hooks(module: nn.Module) -> list[str]:
    registered = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    hooks = [each for each in registered if not isinstance(each, CountingHook)]
    own = vars(module).get("forward")  # set on the instance
    return [_named(each) for each in (*hooks, *([own] if own is not None else []))]
