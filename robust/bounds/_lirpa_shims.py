"""Makes auto_LiRPA 0.3, which was written for torch 1.12, importable and correct on torch 2.11 and later.

A newer auto_LiRPA is imported as it is. None is known to be sound on all networks that it bounds (0.7.1 was off by
0.01 on a residual network of 6x5 images, in convolution patches): :class:`robust.bounds.LirpaVerifier` checks every
method on boxes at its first use on a network, whatever the version.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d

from robust.errors import SettingError

_LOGGER = logging.getLogger("auto_LiRPA.utils")
_REMEDY = "install auto_LiRPA: `uv sync`, or `pip install --no-deps auto_LiRPA==0.3 appdirs pyyaml tqdm`"


def load() -> ModuleType:
    """Import auto_LiRPA.

    Raises:
        SettingError: if it, or a package that it imports, is not installed.
    """
    try:
        return _load()
    except ModuleNotFoundError as error:
        raise SettingError("verifier", "LirpaVerifier", f"{error}; {_REMEDY}") from error


@contextmanager
def tracing() -> Iterator[list[str]]:
    """Prepare the tracing of a network: load all ONNX symbolics, and restore torch's exporter on exit.

    Yields:
        The operations that auto_LiRPA does not know, filled while it traces.
    """
    unsupported: list[str] = []
    handler = _UnsupportedOperations(unsupported)
    for version in range(7, 21):  # torch loads them lazily, and without them exports some operations as older ones
        importlib.import_module(f"torch.onnx.symbolic_opset{version}")
    exporter = _exporter().GLOBALS
    opset = exporter.export_onnx_opset_version
    _LOGGER.addHandler(handler)
    try:
        yield unsupported
    finally:
        _LOGGER.removeHandler(handler)
        exporter.export_onnx_opset_version = opset


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Room for auto_LiRPA's walks through a network, which recurse once or twice for each operation."""
    recursion = sys.getrecursionlimit()
    sys.setrecursionlimit(max(recursion, 20_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(recursion)


class _UnsupportedOperations(logging.Handler):
    """Collects the operations that auto_LiRPA names in its log only, not in its exception."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.names = names

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the operation of one log line."""
        node = record.args[0] if isinstance(record.args, tuple) and record.args else None
        name = getattr(node, "attr", {}).get("operator") or getattr(node, "op", None)
        if name is not None and str(name) not in self.names:
            self.names.append(str(name))


@cache
def _load() -> ModuleType:
    with _side_effects_undone():
        if not _is_old():
            return importlib.import_module("auto_LiRPA")
        with _names_of_old_packages():
            lirpa = importlib.import_module("auto_LiRPA")
    _repair()
    return lirpa


def _is_old() -> bool:
    try:
        version = importlib.metadata.version("auto_LiRPA")
    except importlib.metadata.PackageNotFoundError:  # a source checkout on the path
        return False
    return version.split(".")[:2] == ["0", "3"]


def _exporter() -> ModuleType:
    """The module with the settings of torch's TorchScript-based ONNX exporter."""
    return importlib.import_module("torch.onnx._internal.torchscript_exporter._globals")


@contextmanager
def _names_of_old_packages() -> Iterator[None]:
    """Names that torch and numpy no longer have, for as long as the import takes."""
    arraysetops = ModuleType("numpy.lib.arraysetops")
    arraysetops.isin = np.isin  # type: ignore[attr-defined]
    helper: Any = importlib.import_module("torch.onnx.symbolic_helper")
    helper._set_opset_version = lambda version: setattr(_exporter().GLOBALS, "export_onnx_opset_version", version)
    before = sys.modules.get(arraysetops.__name__)
    sys.modules[arraysetops.__name__] = arraysetops
    try:
        yield
    finally:
        del helper._set_opset_version, sys.modules[arraysetops.__name__]
        if before is not None:
            sys.modules[arraysetops.__name__] = before


@contextmanager
def _side_effects_undone() -> Iterator[None]:
    """Undo what the import does to the root logger, the warning filters and the recursion limit; print nothing."""
    root, recursion = logging.getLogger(), sys.getrecursionlimit()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.WARNING)  # torch's, about a missing CUDA compiler that is not needed
    try:
        with warnings.catch_warnings(record=True):  # recorded, as the import sets a filter of its own
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)
        sys.setrecursionlimit(recursion)
        _LOGGER.propagate = False  # the verifier says what went wrong in one line
        _LOGGER.addHandler(logging.NullHandler())


def _repair() -> None:
    """Correct auto_LiRPA 0.3, where a newer torch breaks it and where its own errors give wrong bounds or none."""
    general: Any = importlib.import_module("auto_LiRPA.bound_general")
    operators: Any = importlib.import_module("auto_LiRPA.bound_ops")
    node: Any = torch._C.Node
    node.__getitem__ = lambda self, name: getattr(self, self.kindOf(name))(name)
    # its own lacks an argument of torch's; it differs in names only, which nothing here uses
    general.BoundedModule._named_members = torch.nn.Module._named_members
    # its own switches requires_grad of the classifier's weights on or off
    operators.BoundParams.forward = lambda self: self.param_init if self.initializing else self.param
    # its own takes no specification, so a last layer without a bias could not be merged with one
    operators.BoundMatMul.interval_propagate = operators.BoundLinear.interval_propagate
    # its own counts buffers as inputs, that is, as having a batch dimension
    operators.BoundBuffers.from_input = property(lambda self: False, lambda self, value: None)
    operators.Bound.broadcast_backward = _broadcast_backward(operators.Bound.broadcast_backward)
    operators.BoundMul._multiply_by_const = staticmethod(_channel_constants(operators.BoundMul._multiply_by_const))
    # its own forgets stride and padding
    operators.BoundAveragePool.bound_backward = _average_pool_backward
    operators.BoundRelu._relu_mask_alpha = staticmethod(_slopes_of_unstable)


def _slopes_of_unstable(lower: Tensor, upper: Tensor, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
    """Alpha-CROWN's lower slopes, for unstable neurons only, and whether every neuron is inactive.

    The original clamps the slopes, which start at 0 or 1: there torch's clamp has gradient zero since about 2.15, and
    nothing would be optimised. They are clipped to [0, 1] after every step anyway.
    """
    unstable, active = (lower < 0) & (upper > 0), lower >= 0
    masked = [
        slope if slope is None else torch.where(unstable, slope, active.to(slope.dtype)).contiguous()
        for slope in slopes
    ]
    return *masked, (upper <= 0).all()


def _channel_constants(original: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """Let CROWN's convolution patches be multiplied by a constant a channel, such as a normalisation's 1 / std.

    The original wants the constant repeated for each example of the batch.
    """

    def multiply(A: Any, constant: Tensor) -> Any:
        patches = getattr(A, "patches", None)  # (..., channels, height, width)
        if patches is None or (constant.numel() > 1 and constant.shape[-3:] != (patches.shape[-3], 1, 1)):
            return original(A, constant)
        return A.create_similar(patches * constant.reshape(-1, 1, 1))

    return multiply


def _broadcast_backward(original: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """Sum rows on the output of an addition (S, B, *shape) to rows on a constant that was broadcast to it.

    The original sums over the batch too, or over the wrong dimensions, which gives wrong bounds for some batch sizes.
    """

    def broadcast_backward(self: Any, A: Any, x: Any) -> Any:
        if x.batch_dim != -1 or not isinstance(A, Tensor):
            return original(self, A, x)
        shape = (1,) * (A.ndim - 1 - len(x.output_shape)) + tuple(x.output_shape)
        dims = [i + 1 for i in range(1, len(shape)) if shape[i] == 1]
        return A.sum(dims, keepdim=True) if dims else A

    return broadcast_backward


def _average_pool_backward(self: Any, lower: Tensor | None, upper: Tensor | None, _: object) -> tuple[Any, int, int]:
    """CROWN's rows (S, B, C, H', W') on the output of an average pooling as rows (S, B, C, H, W) on its input."""
    sides = zip(self.input_shape[-2:], self.output_shape[-2:], self.kernel_size, self.stride, self.padding, strict=True)
    # rows and columns at the far edge that no window reached have coefficient zero
    rest = [size - ((out - 1) * stride - 2 * pad + kernel) for size, out, kernel, stride, pad in sides]

    def adjoint(A: Tensor | None) -> Tensor | None:
        if A is None:
            return None
        weight = A.new_full((1, 1, *self.kernel_size), 1 / math.prod(self.kernel_size))
        rows = conv_transpose2d(A.flatten(0, 2)[:, None], weight, None, self.stride, self.padding, rest)
        return rows.view(*A.shape[:3], *rows.shape[2:])

    return [(adjoint(lower), adjoint(upper))], 0, 0
