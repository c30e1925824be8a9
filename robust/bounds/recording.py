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
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robust.bounds.calls import IMAGES, REMEDY, Call, Recording, Ref, leaves, mapped, refusal
from robust.bounds.changes import version
from robust.bounds.operations.registry import builder_of, name_of, rewritten
from robust.errors import UnsupportedLayerError

UNFOLLOWED = "a tensor with a number for each image comes from code that cannot be followed, such as TorchScript"
WRITES = "it changes a weight in the forward pass, so that bounds may be of other weights than the next pass"
WRITTEN_BEFORE = "change weights after an optimizer's step, or by torch.nn.utils.parametrize"
CHANGED = "an argument or the result has changed since its call, in place by way of another view of it"
# what reads the values of activations, or changes them unseen
READERS = {"__bool__", "__float__", "__int__", "__index__", "__complex__", "__contains__", "__array__", "__setitem__"}
READERS |= {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero"}
# what changes its first argument, beside functions whose names end with _; of these, what leaves the values
WRITERS = {"__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"))}
HARMLESS = {"requires_grad_", "detach_", "share_memory_"}
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


def record(network: nn.Module, images: Tensor) -> tuple[Recording, list[Tensor]]:
    """Record the forward pass of images (B, C, H, W); also gives the result of each call.

    Raises:
        UnsupportedLayerError: naming layer, operation and line, where the pass depends on the images' values.
    """
    recorder = _Recorder(network, images)
    result = _pass(network, images, recorder)
    if not isinstance(result, Tensor):
        raise UnsupportedLayerError("network", f"output of type {type(result).__name__}", "give logits of shape (B, K)")
    reference = recorder.ref(result)
    if reference is None or not reference.dynamic:
        remedy = f"its logits come from code that cannot be followed; {REMEDY}"
        raise UnsupportedLayerError("network", type(network).__name__, remedy)
    if recorder.changed(result):
        raise UnsupportedLayerError("network", type(network).__name__, f"{CHANGED}; {REMEDY}")
    return Recording(recorder.calls, reference, images.shape[1:], recorder.reads_weights), recorder.values


def reads_weights(network: nn.Module, images: Tensor) -> bool:
    """Whether the forward pass of images (B, C, H, W) takes a weight as a number.

    Raises:
        ValueDependenceError: if it takes the value of an image as a number.
        WeightChangeError: if it changes a weight.
    """
    recorder = _Recorder(network, images, follows=False)
    _pass(network, images, recorder)
    return recorder.reads_weights


def _pass(network: nn.Module, images: Tensor, recorder: _Recorder) -> Any:
    with torch.no_grad(), recorder, recorder.named_modules():
        return network(images)


class ValueDependenceError(UnsupportedLayerError):
    """The operations of a network depend on an image's values."""


class WeightChangeError(UnsupportedLayerError):
    """A network changes its weights in its forward pass."""


class _Recorder(TorchFunctionMode):
    """Records the calls; unless it ``follows`` all of them, it only looks for values that are read."""

    def __init__(self, network: nn.Module, images: Tensor, *, follows: bool = True) -> None:
        super().__init__()
        self._follows = follows
        self.network, self.calls, self.values = network, list[Call](), list[Tensor]()
        self._refs = {id(images): Ref(IMAGES, True)}
        tensors = (*network.named_buffers(remove_duplicate=False), *network.named_parameters(remove_duplicate=False))
        self._refs |= {id(tensor): Ref(name, False) for name, tensor in tensors}
        self._names = {module: name for name, module in network.named_modules()}
        self._kept = [images]
        self._constants = {id(value) for module in network.modules() for value in vars(module).values()}
        self._versions = {id(images): version(images)}
        self._weights = {each.untyped_storage().data_ptr() for each in network.parameters()} - {0}
        self._layers, self._paused, self._batch = [""], False, len(images)
        self.reads_weights = False

    def ref(self, value: object) -> Ref | None:
        """The reference to a known tensor; None for a constant and for anything else."""
        return self._refs.get(id(value)) if isinstance(value, Tensor) else None

    def changed(self, values: object) -> bool:
        """Whether a known tensor has changed since its call, in place by way of another view of it."""
        return any(id(value) in self._versions and self._is_outdated(value) for value in leaves(values))

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
        if not self._paused and self._writes_weight(func, args, named):
            raise self._refusal(func, WRITES, WeightChangeError, WRITTEN_BEFORE)
        # before the call, which may change an argument in place
        seen, changed = mapped((args, named), self._or_ref), self.changed((args, named))
        result = func(*args, **named)
        if not self._paused:
            self._note(func, seen, result, changed)
        return result

    def _writes_weight(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether a call changes a weight, in place or by giving it other data."""
        name = str(getattr(function, "__name__", ""))
        of_data = name == "__set__" and getattr(getattr(function, "__self__", None), "__name__", "") == "data"
        in_place = of_data or name in WRITERS or (re.fullmatch(r"[a-z]\w*_", name) and name not in HARMLESS)
        written = [*(args[:1] if in_place else ()), named.get("out")]
        tensors = [each for each in written if isinstance(each, Tensor)]
        return any(each.untyped_storage().data_ptr() in self._weights for each in tensors)

    def _or_ref(self, value: object) -> object:
        return self.ref(value) or value

    def _refs_in(self, values: object) -> list[Ref]:
        return [ref for value in leaves(values) if (ref := self.ref(value))]

    def _note(self, function: Callable[..., Any] | str, arguments: tuple[Any, ...], result: Any, changed: bool) -> None:
        args, named = arguments
        refs = [value for value in leaves(arguments) if isinstance(value, Ref)]
        tensors = [value for value in leaves(arguments) if isinstance(value, Tensor)]
        unknown = [tensor for tensor in tensors if id(tensor) not in self._constants]
        others = [ref for ref in refs if not args or ref != args[0]]  # args[0] gives a SHAPED call its shape alone
        of_shape = getattr(function, "__name__", "") in SHAPED and not any(ref.dynamic for ref in others)
        if not refs or of_shape:
            if unknown:  # the result, and an argument that it fills in place, may depend on the images, too
                self._constants.difference_update(map(id, tensors))
            else:
                constants = [value for value in leaves(result) if isinstance(value, Tensor)]
                self._constants.update(map(id, constants))
                self._kept += constants  # and with them their ids
            return
        dynamic = any(ref.dynamic for ref in refs)
        several = isinstance(result, (tuple, list))
        if dynamic and self._follows and any(self._is_per_image(tensor, result) for tensor in unknown):
            raise self._refusal(function, UNFOLLOWED)
        for part, value in enumerate(result if several else [result]):
            if isinstance(value, Tensor):
                if changed and self._follows:
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
            raise self._refusal(function, reason, ValueDependenceError)
        self.reads_weights |= getattr(function, "__name__", "") in READERS

    def _is_per_image(self, tensor: Tensor, result: object) -> bool:
        """Whether a tensor has the axes of the result and a row for each image."""
        axes = result.dim() if isinstance(result, Tensor) else 0
        return 0 < tensor.dim() == axes and len(tensor) == self._batch

    def _refusal(
        self,
        function: Callable[..., Any] | str,
        reason: str,
        kind: type[UnsupportedLayerError] = UnsupportedLayerError,
        remedy: str = REMEDY,
    ) -> UnsupportedLayerError:
        call = function if isinstance(function, str) else name_of(function)
        return refusal(self.network, self._layers[-1], call, _users_line(), reason, kind, remedy)

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


def _users_line() -> str:
    """File, line and text of the innermost code that runs the network and is not PyTorch's; empty for none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and (frame.f_code.co_filename, frame.f_code.co_name) != (__file__, _pass.__name__):
        file = frame.f_code.co_filename
        if not file.startswith(OWN_CODE):
            return f"{Path(file).name}, line {frame.f_lineno}: {linecache.getline(file, frame.f_lineno).strip()}"
        frame = frame.f_back
    return ""
