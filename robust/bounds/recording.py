"""A network as the list of calls that its forward pass makes: recorded while it runs in evaluation mode.

Recording follows any Python code: shapes, asserts, branches on a shape, loops, hooks, pruning, parametrizations. Tried
on 25 networks of torchvision, timm and ours, and on five that use such code: ``torch.fx`` traced 24 and stopped at an
assert and at a branch on a shape; ``torch.export`` followed all 30, in 62 s for the 25, where recording takes 3 s. A
recording also keeps the modules, for which users register operations of their own, and the line of the user's code.
What depends on the *values* of an image cannot be followed and is an error.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robust.bounds.changes import version
from robust.bounds.operations.registry import builder_of, name_of, rewritten
from robust.errors import UnsupportedLayerError

UNKNOWN, REMEDY = "FeedForwardVerifier has no bound for it", "set the verifier to robust.bounds.LirpaVerifier"
CHANGED = "an argument or the result has changed since its call, in place by way of another view of it"
# what reads the values of activations, or changes them unseen
READERS = {"__bool__", "__float__", "__int__", "__index__", "__complex__", "__contains__", "__array__", "__setitem__"}
READERS |= {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero"}
# what depends on the shape of activations only: constants
SHAPED = {"new_tensor", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like"}
# what takes the shape, or device and type, of another tensor
PATTERNS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "expand_as": (Tensor.expand, ("shape",)),
    "view_as": (Tensor.view, ("shape",)),
    "reshape_as": (Tensor.reshape, ("shape",)),
    "type_as": (Tensor.to, ("device", "dtype")),
    "to": (Tensor.to, ("device", "dtype")),
}
OWN_CODE = (*(f"{Path(module).parent}{os.sep}" for module in (torch.__file__, __file__)), "<")
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
        refs: list[Ref] = []
        mapped((self.arguments, self.named), lambda value: refs.append(value) if isinstance(value, Ref) else None)
        return refs

    def error(self, network: nn.Module, reason: str = "") -> UnsupportedLayerError:
        """The error that the call has no bound."""
        return _error(network, self.layer, self.name, self.line, reason)


@dataclass(frozen=True)
class Recording:
    """All calls, the tensor that is the network's result, and the shape of an image.

    ``reads_weights`` says whether the pass took a weight as a number, on which its calls may depend.
    """

    calls: list[Call]
    result: Ref
    image_shape: torch.Size
    reads_weights: bool = False

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


def record(network: nn.Module, images: Tensor) -> tuple[Recording, list[Tensor]]:
    """Record the forward pass of images (B, C, H, W); also gives the result of each call.

    Raises:
        UnsupportedLayerError: naming layer, operation and line, where the pass depends on the images' values.
    """
    recorder = _Recorder(network, images)
    with torch.no_grad(), recorder, recorder.named_modules():
        result = network(images)
    if not isinstance(result, Tensor):
        raise UnsupportedLayerError("network", f"output of type {type(result).__name__}", "give logits of shape (B, K)")
    reference = recorder.ref(result)
    if reference is None or not reference.dynamic:
        remedy = f"its logits come from code that cannot be followed; {REMEDY}"
        raise UnsupportedLayerError("network", type(network).__name__, remedy)
    if recorder.changed(result):
        raise UnsupportedLayerError("network", type(network).__name__, f"{CHANGED}; {REMEDY}")
    return Recording(recorder.calls, reference, images.shape[1:], recorder.reads_weights), recorder.values


class _Recorder(TorchFunctionMode):
    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network, self.calls, self.values = network, list[Call](), list[Tensor]()
        self._refs = {id(images): Ref(IMAGES, True)}
        tensors = (*network.named_buffers(remove_duplicate=False), *network.named_parameters(remove_duplicate=False))
        self._refs |= {id(tensor): Ref(name, False) for name, tensor in tensors}
        self._names = {module: name for name, module in network.named_modules()}
        self._kept = [images]
        self._versions = {id(images): version(images)}
        self._layers, self._paused, self._batch = [""], False, len(images)
        self.reads_weights = False

    def ref(self, value: object) -> Ref | None:
        """The reference to a known tensor; None for a constant and for anything else."""
        return self._refs.get(id(value)) if isinstance(value, Tensor) else None

    def changed(self, values: object) -> bool:
        """Whether a known tensor has changed since its call, in place by way of another view of it."""
        outdated: list[bool] = []
        mapped(values, lambda value: outdated.append(id(value) in self._versions and self._is_outdated(value)))
        return any(outdated)

    def _is_outdated(self, value: Tensor) -> bool:
        return self._versions[id(value)] != version(value)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func, args, named = _without_pattern(func, args, kwargs or {})
        simpler = None if self._paused else rewritten(name_of(func))
        if simpler is not None and any(ref.dynamic for ref in self._refs_in((args, named))):
            with self:
                return simpler(*args, **named)
        # before the call, which may change an argument in place
        seen, changed = mapped((args, named), self._or_ref), self.changed((args, named))
        result = func(*args, **named)
        if not self._paused:
            self._note(func, seen, result, changed)
        return result

    def _or_ref(self, value: object) -> object:
        return self.ref(value) or value

    def _refs_in(self, values: object) -> list[Ref]:
        found: list[Ref] = []
        mapped(values, lambda value: found.append(ref) if (ref := self.ref(value)) else None)
        return found

    def _note(self, function: Callable[..., Any] | str, arguments: tuple[Any, ...], result: Any, changed: bool) -> None:
        args, named = arguments
        refs: list[Ref] = []
        mapped((args, named), lambda value: refs.append(value) if isinstance(value, Ref) else None)
        if not refs or getattr(function, "__name__", "") in SHAPED:
            return
        dynamic = any(ref.dynamic for ref in refs)
        several = isinstance(result, (tuple, list))
        for part, value in enumerate(result if several else [result]):
            if isinstance(value, Tensor):
                if changed:
                    raise self._refusal(function, CHANGED)
                place = part if several else None, dynamic, self._layers[-1], _users_line()
                per_image = value.dim() > 0 and len(value) == self._batch
                self.calls.append(Call(function, args, named, *place, value.shape[1:], per_image))
                self.values.append(value.clone())  # as it is now: a later call may change it in place
                self._kept.append(value)  # and with it its id
                self._refs[id(value)] = Ref(len(self.calls) - 1, dynamic)
                self._versions[id(value)] = version(value)
        if dynamic and getattr(function, "__name__", "") in READERS:
            reason = "the network's operations must not depend on an image's values"
            raise self._refusal(function, reason)
        self.reads_weights |= getattr(function, "__name__", "") in READERS

    def _refusal(self, function: Callable[..., Any] | str, reason: str) -> UnsupportedLayerError:
        call = function if isinstance(function, str) else name_of(function)
        return _error(self.network, self._layers[-1], call, _users_line(), reason)

    @contextmanager
    def named_modules(self) -> Iterator[None]:
        """Know which module is running, and record a module that has an operation of its own as one call."""
        original = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = self._names.get(module, self._layers[-1])
            whole = not self._paused and module in self._names and builder_of(module) is not None
            seen, changed = mapped((args, kwargs), self._or_ref), self.changed((args, kwargs))
            self._layers.append(name)
            self._paused |= whole
            try:
                result = original(module, *args, **kwargs)
            finally:
                self._paused &= not whole
                self._layers.pop()
            if whole:
                self._layers.append(name)
                self._note(name, seen, result, changed)
                self._layers.pop()
            return result

        with patch.object(nn.Module, "__call__", call):
            yield


def _without_pattern(
    function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The call ``h.view(x.shape)`` for ``h.view_as(x)``: what x holds does not matter."""
    method, attributes = PATTERNS.get(name_of(function), (function, ()))
    other = args[1] if len(args) > 1 else named.get("other")
    if not attributes or not isinstance(other, Tensor):
        return function, args, named
    taken = (getattr(other, attribute) for attribute in attributes)
    return method, (args[0], *taken, *args[2:]), {name: value for name, value in named.items() if name != "other"}


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


def _users_line() -> str:
    """File, line and text of the innermost code that runs the network and is not PyTorch's; empty for none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and (frame.f_code.co_filename, frame.f_code.co_name) != (__file__, record.__name__):
        file = frame.f_code.co_filename
        if not file.startswith(OWN_CODE):
            return f"{Path(file).name}, line {frame.f_lineno}: {linecache.getline(file, frame.f_lineno).strip()}"
        frame = frame.f_back
    return ""


def _error(network: nn.Module, layer: str, call: str, line: str, reason: str) -> UnsupportedLayerError:
    module = network.get_submodule(layer)
    plain = type(module).__module__.startswith("torch.nn.") and not list(module.children())
    what = str(module).split("\n")[0] if plain else f"{call} ({line})" if line else call
    name = f"network layer '{layer}'" if layer else "network"
    return UnsupportedLayerError(name, what, f"{reason or UNKNOWN}; {REMEDY}")
