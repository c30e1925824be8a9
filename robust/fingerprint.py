"""Describe settings and networks as plain values, so that saved results can be matched to them.

The values of equal settings are equal in every process.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from inspect import unwrap
from types import CellType, CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust.own_files import hash_of_own_file
from robust.passes import CountingHook

OF_PROJECT = ("robust", "lightning_modules", "callbacks", "datamodules")
DEEPEST = 20  # objects within each other that are entered; of deeper ones the class counts
# attributes of a training module that change in training, or that its predictions do not depend on
OF_TRAINING = (
    "training",
    "ramp",
    "batches_started",
    "data_indices",
    "constructor_settings",
    "resume_settings",
    "training_cost",
    "used_optimizers",
    "weights",
    "verifier",
)
_PLAIN = (bool, int, str, type(None))
_OWN = {"training", "_trainer", "_fabric", *vars(nn.Module())}  # of every module, and what runs a LightningModule


def structure(network: nn.Module) -> list[Any]:
    """The modules of a network in order, each with its class, settings and the names of its hooks.

    Weights and buffers are left out. A training module is described by its networks and settings. Functions count by
    their names, lambdas and functions within functions also by their code and the values that it refers to.

    >>> structure(nn.ReLU()) == structure(nn.ReLU()), structure(nn.ReLU()) == structure(nn.Tanh())
    (True, False)
    """
    if hasattr(network, "constructor_settings"):  # a training module, which knows its trainer and its optimizers
        networks, settings = method_parts(network)
        parts = [[name, structure(each)] for name, each in networks.items()]
        return [_named(type(network)), _hooks(network), own_code(type(network)), described(settings), *parts]
    return _Description().structure(network)


def method_parts(module: nn.Module) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
    """The networks of a training module by name, and its settings without those of the training alone."""
    networks = {name: each for name, each in module.named_children() if not _has_metrics(each)}
    arguments = getattr(module, "constructor_settings", {}).get("init_args", {})  # also of private attributes
    given = [vars(module), {name: value for name, value in arguments.items() if name not in networks}]
    settings = [{name: each[name] for name in each if not _is_of_training(name)} for each in given]
    kind: Any = type(module)
    computed = _OWN | _computed(kind)
    private = {name: value for name, value in vars(module).items() if name[0] == "_" and name not in computed}
    return networks, [*settings, *([private] if private else [])]


def described(value: object) -> Any:
    """Settings as plain values that are equal for equal settings: objects by class and attributes.

    Private attributes that this project's classes assign are left out: they keep there what they compute. Of what has
    neither attributes nor a text of its own, such as a lock, the class counts alone.
    """
    return _Description()(value)


def own_code(*values: object) -> dict[str, str]:
    """Hashes of the user's files that define these classes, or those of these objects and of what they hold, by module.

    >>> own_code(nn.ReLU(), [1, 2])
    {}
    """
    description = _Description()
    for value in values:  # of a network without its weights
        description.structure(value) if isinstance(value, nn.Module) else description(value)
    kinds = description.kinds.union(value for value in values if isinstance(value, type))
    modules = {base.__module__ for kind in kinds for base in kind.__mro__}
    hashes = {module: hash_of_own_file(module) for module in sorted(modules)}
    return {module: code for module, code in hashes.items() if code is not None}


class _Description:
    """Describes each object once, however many others know it; values, such as lists, wherever they are.

    Attributes:
        kinds: classes of the described objects.
    """

    def __init__(self) -> None:
        self.kinds: set[type] = set()
        self._seen: dict[int, int] = {}  # numbers of the entered objects, by identity
        self._within: list[int] = []  # identities of what is being described now

    def __call__(self, value: object) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, float | complex | np.generic):
            return repr(value)  # not a number is not equal to itself
        if isinstance(value, Tensor | np.ndarray):
            return [list(value.shape), str(value.dtype), digest([torch.as_tensor(value)])]
        if id(value) in self._within:
            return "cyclic"
        local = inspect.isfunction(value) and "<" in value.__qualname__  # a lambda, or in a function: many have a name
        if not local and (inspect.isroutine(value) or isinstance(value, type | ModuleType | logging.Logger)):
            return _named(value)
        self._within.append(id(value))
        result = self._entered(value)
        self._within.pop()
        return result

    def structure(self, network: nn.Module) -> list[Any]:
        """Describe the modules of a network; see :func:`structure`."""
        modules = list(network.named_modules())
        self.kinds.update(type(each) for _, each in modules)
        return [[name, _named(type(each)), self._attributes(each), _hooks(each)] for name, each in modules]

    def _entered(self, value: Any) -> Any:
        self.kinds.add(type(value))
        if isinstance(value, Mapping):
            return {str(name): self(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self(each) for each in value]
        if isinstance(value, set | frozenset):
            return sorted((self(each) for each in value), key=str)
        if inspect.isfunction(value):
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]  # some are empty
            parts = (value.__defaults__, value.__kwdefaults__, cells)
            return [_named(value), _code(value.__code__), *(self(part) for part in parts)]
        if isinstance(value, partial):
            return [self(value.func), self(value.args), self(value.keywords)]
        if not hasattr(value, "__dict__"):
            return [_named(type(value)), "" if " at 0x" in repr(value) else repr(value)]
        if id(value) in self._seen:
            return f"object {self._seen[id(value)]}"
        if len(self._within) > DEEPEST:
            return _named(type(value))
        self._seen[id(value)] = len(self._seen)
        weights = [weights_of(value), self.structure(value)] if isinstance(value, nn.Module) else []
        return [_named(type(value)), self._attributes(value), *weights]

    def _attributes(self, owner: object) -> dict[str, Any]:
        kind: Any = type(owner)
        ignored = (_OWN if isinstance(owner, nn.Module) else set()) | _computed(kind)
        return {name: self(value) for name, value in vars(owner).items() if name not in ignored}


def _is_of_training(name: str) -> bool:
    return name[0] == "_" or name in OF_TRAINING or name.endswith(("optimizer", "lr_scheduler"))


def _has_metrics(module: nn.Module) -> bool:
    kinds = {base for each in module.modules() for base in type(each).__mro__}
    return any(kind.__module__.startswith("torchmetrics.") for kind in kinds)


@cache
def _computed(kind: type) -> frozenset[str]:
    """Names of the private attributes that this project's classes behind ``kind``, and their bases, assign.

    These classes keep there what they compute. A user's subclass may keep its settings in others.
    """
    if not any(_of_project(base) for base in kind.__mro__):
        return frozenset()
    bases = [base for base in kind.__mro__ if _of_project(base) or hash_of_own_file(base.__module__) is None]
    members = [member for base in bases for member in vars(base).values()]
    functions = [getattr(member, "fget", None) or getattr(member, "func", member) for member in members]
    codes = [code for each in functions if isinstance(code := getattr(unwrap(each), "__code__", None), CodeType)]
    return frozenset(name for code in codes for name in _names(code) if name.startswith("_"))


def _of_project(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in OF_PROJECT


def _names(code: CodeType) -> Iterator[str]:
    """Names of the attributes that a function assigns, also by ``setattr``."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR")
    for constant in code.co_consts:
        yield from [constant] if isinstance(constant, str) else []
        yield from _names(constant) if isinstance(constant, CodeType) else []


def weights_of(network: nn.Module) -> str:
    """Checksum of a network's weights and buffers, also of those that no checkpoint has."""
    saved = network.state_dict()
    others = [buffer for name, buffer in network.named_buffers() if name not in saved]
    return digest([*saved.values(), *others])


def digest(tensors: Iterable[Tensor]) -> str:
    """Checksum of tensors of any type and layout."""
    result = hashlib.sha256()
    for tensor in tensors:
        dense = tensor.detach().cpu().to_dense() if tensor.layout is not torch.strided else tensor.detach().cpu()
        result.update(f"{tuple(dense.shape)} {dense.dtype}".encode())
        result.update(dense.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def _named(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _code(code: CodeType) -> list[Any]:
    """The instructions of a function and what they refer to, without names of files and lines."""
    constants = [_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _hooks(module: nn.Module) -> list[str]:
    registered = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    hooks = [each for each in registered if not isinstance(each, CountingHook)]
    own = vars(module).get("forward")  # set on the instance
    return [_named(each) for each in (*hooks, *([own] if own is not None else []))]
