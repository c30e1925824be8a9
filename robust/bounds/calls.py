"""The calls that a network's forward pass makes, and the tensors that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from robust.bounds.operations.registry import name_of
from robust.errors import UnsupportedLayerError

UNKNOWN, REMEDY = "FeedForwardVerifier has no bound for it", "set the verifier to robust.bounds.LirpaVerifier"
MIXES = "it mixes the images of a batch"
IMAGES = -1  # the key of what the network is given


class Ref(NamedTuple):
    """A tensor that a call made or the network holds: index or name; ``dynamic`` if it depends on the images."""

    key: int | str
    dynamic: bool


class Call(NamedTuple):
    """A call of a function, or of a module that has an operation of its own.

    Attributes:
        function: the function called, or the module's name.
        arguments: positional arguments, with a :class:`Ref` in place of each known tensor.
        named: keyword arguments, with references in the same way.
        part: index of the result that this call stands for, if there are several.
        dynamic: whether the result depends on the images.
        layer: name of the innermost module that was running.
        line: file and line of the user's code.
        shape: shape of the result of one image.
        per_image: whether the result has a batch axis.
    """

    function: Callable[..., Any] | str
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    part: int | None
    dynamic: bool
    layer: str
    line: str
    shape: torch.Size
    per_image: bool

    @property
    def name(self) -> str:
        """Name of the function, or of the module."""
        return self.function if isinstance(self.function, str) else name_of(self.function)

    def refs(self) -> list[Ref]:
        """The tensors among the arguments."""
        return [value for value in leaves((self.arguments, self.named)) if isinstance(value, Ref)]

    def error(self, network: nn.Module, reason: str = "") -> UnsupportedLayerError:
        """The error that the call has no bound."""
        return refusal(network, self.layer, self.name, self.line, reason)


@dataclass(frozen=True)
class Recording:
    """All calls, the tensor that is the network's result, and the shape of an image.

    ``reads_weights`` says whether the pass took a weight as a number, on which its calls may depend; ``cut`` names the
    weights that get no gradient by the logits, though they ask for one.
    """

    calls: list[Call]
    result: Ref
    image_shape: torch.Size
    reads_weights: bool = False
    cut: frozenset[str] = frozenset()

    @cached_property
    def needed(self) -> dict[int, list[Ref]]:
        """The calls on which the result depends, by index, in their order, with the tensors that each takes."""
        needed, ahead = dict[int, list[Ref]](), [self.result.key]
        while ahead:
            key = ahead.pop()
            if isinstance(key, int) and key >= 0 and key not in needed:
                needed[key] = self.calls[key].refs()
                ahead += [ref.key for ref in needed[key]]
        return dict(sorted(needed.items()))

    def shape_of(self, ref: Ref) -> torch.Size:
        """Shape of one example of what depends on the images."""
        assert isinstance(ref.key, int)
        return self.image_shape if ref.key == IMAGES else self.calls[ref.key].shape


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """A nest of tuples, lists, dicts and slices with each leaf replaced by the function's result."""
    if isinstance(value, Ref) or not isinstance(value, (tuple, list, dict, slice)):
        return function(value)
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(item, function) for item in (value.start, value.stop, value.step)))
    items = [mapped(item, function) for item in value]
    return items if isinstance(value, list) else tuple(items)


def leaves(value: Any) -> list[Any]:
    """The leaves of a nest, in the order in which :func:`mapped` meets them."""
    found: list[Any] = []
    mapped(value, found.append)
    return found


def refusal(
    network: nn.Module,
    layer: str,
    call: str,
    line: str,
    reason: str,
    kind: type[UnsupportedLayerError] = UnsupportedLayerError,
    remedy: str = REMEDY,
) -> UnsupportedLayerError:
    """The error that a call has no bound, with the layer, the call or the layer's module, and the user's line."""
    module = network.get_submodule(layer)
    plain = type(module).__module__.startswith("torch.nn.") and not list(module.children())
    what = str(module).split("\n")[0] if plain else f"{call} ({line})" if line else call
    name = f"network layer '{layer}'" if layer else "network"
    return kind(name, what, f"{reason or UNKNOWN}; {remedy}")
