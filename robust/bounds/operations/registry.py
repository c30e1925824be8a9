"""Which operation bounds a call of PyTorch or of a module: one table, to which users add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from robust.bounds.operations.base import Operation

Builder = Callable[..., Operation | None]
_BUILDERS: dict[str | type[nn.Module], Builder] = {}
_REWRITES: dict[str, Callable[..., Any]] = {}


class Operand(NamedTuple):
    """An argument that depends on the images: its shape, and that of the call's result, of one example each."""

    shape: torch.Size
    output: torch.Size


class UnboundedError(Exception):
    """A call has no bound with these arguments; the message says which."""


def name_of(function: Callable[..., Any]) -> str:
    """The name under which a function or a method is registered: ``relu`` for ``F.relu``, ``torch.relu_`` and so on.

    >>> [name_of(f) for f in (torch.relu, torch.Tensor.relu_, torch.Tensor.__add__, torch.Tensor.T.__get__)]
    ['relu', 'relu', 'add', 'T']
    """
    name = str(getattr(function, "__name__", type(function).__name__))
    if name == "__get__":
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    return name.strip("_")


def register(*calls: str | type[nn.Module] | Callable[..., Any]) -> Callable[[Builder], Builder]:
    """Decorate the function that builds the operation of these calls.

    It takes the call's arguments: an :class:`Operand` in place of each tensor that depends on the images, any other as
    it is, weights in the precision of the bounds. For a class of modules these are the module and its arguments. It
    returns an operation whose inputs are the operands in their order, or None where the call changes nothing.

    >>> from robust.bounds import FeedForwardVerifier
    >>> from robust.bounds.operations import Activation
    >>> from robust.threat_models import LinfBall
    >>> class Softsign(Activation):
    ...     kinks, pieces, lipschitz = (0.0,), ((-torch.inf, 0.0, 1), (0.0, torch.inf, -1)), 1.0
    ...
    ...     def value(self, x):
    ...         return x / (1 + x.abs())
    ...
    ...     def slope(self, x):
    ...         return 1 / (1 + x.abs()).square()
    >>> class Layer(nn.Softsign):
    ...     pass
    >>> @register(Layer)  # or nn.functional.softsign, which covers nn.Softsign as well
    ... def softsign(module, x):
    ...     return Softsign()
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), Layer(), nn.Linear(8, 2))
    >>> FeedForwardVerifier().margins(network, LinfBall(0.1).interval(torch.rand(1, 1, 2, 2)), torch.tensor([0])).shape
    torch.Size([1, 1])

    Args:
        calls: functions, their names, or classes of modules, which are then not looked into.
    """

    def add(builder: Builder) -> Builder:
        for call in calls:
            key = call if isinstance(call, (str, type)) else name_of(call)
            _BUILDERS[key] = builder
        return builder

    return add


def rewrite(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that computes what the functions of these names do, in calls that have operations."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        _REWRITES.update(dict.fromkeys(names, function))
        return function

    return add


def builder_of(call: str | nn.Module) -> Builder | None:
    """The builder of a function's name or of a module's class; None where there is none."""
    return _BUILDERS.get(call if isinstance(call, str) else type_before_parametrizations(call))


def rewritten(name: str) -> Callable[..., Any] | None:
    """The function that computes the one of that name in simpler calls; None if there is no such function."""
    return _REWRITES.get(name)
