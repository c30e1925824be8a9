"""The attributes of a network as values that differ where one has changed: a bound is of the network as it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

SMALL = 4096  # elements; a larger tensor is compared by its version, as weights are
_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype)
_OWN = {"training", *vars(nn.Module())}  # of every module: its mode, and what is compared by other ways
_LIGHTNING = ("_trainer", "_fabric")  # they run the network, and do not say what it computes

States = dict[tuple[str, str], object]


def attributes(network: nn.Module) -> States:
    """The state of each attribute of each module, by the names of both.

    Containers and objects are entered, also those behind private names. Not seen are a change of a function's closure,
    one of a tensor of more than 4096 elements through ``data``, and one of what only a C extension can see.
    """
    seen: set[int] = set()
    return {
        (name, attribute): _state(value, seen)
        for name, module in network.named_modules(remove_duplicate=False)
        for attribute, value in _items(module)
    }


def version(tensor: Tensor) -> tuple[int, int]:
    """The identity of a tensor, and the number of its changes in place; inference tensors count none."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _items(owner: object) -> Iterator[tuple[str, object]]:
    ignored = _OWN if isinstance(owner, nn.Module) else ()
    yield from (item for item in getattr(owner, "__dict__", {}).items() if item[0] not in ignored)
    for kind in type(owner).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            yield name, getattr(owner, name, None)


def _state(value: object, seen: set[int]) -> object:
    """A state that differs after a change of the value: a tensor's version, an array's bytes, an object's attributes.

    Args:
        value: value of an attribute, or a value inside one.
        seen: identities of the containers and objects that were entered before.
    """
    if isinstance(value, np.generic):  # which compares itself with the elements of other states
        return value.dtype.str, value.item()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        small = value.device.type == "cpu" and value.layout is torch.strided and value.numel() <= SMALL
        return version(value), value.tolist() if small else None
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if inspect.isroutine(value) or isinstance(value, type | ModuleType) or id(value) in seen:
        return id(value)
    seen.add(id(value))
    if isinstance(value, Mapping):
        return id(value), [(_state(name, seen), _state(each, seen)) for name, each in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), [_state(each, seen) for each in value]
    items = [(name, _state(each, seen)) for name, each in _items(value) if name not in _LIGHTNING]
    return (id(value), items) if items else (type(value), repr(value))
