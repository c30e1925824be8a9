"""Linear maps without weights: values that move, are copied, added up or averaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.bounds.operations.base import Affine, Arithmetic, Interval
from robust.bounds.operations.registry import Operand, UnboundedError, name_of, register
from robust.convolution import pair


class LinearMap(Affine):
    """A linear map whose weights are not negative, of one or more inputs; its adjoint is PyTorch's own derivative.

    >>> LinearMap(lambda h: h.mean(1, keepdim=True), terms=4).rows(torch.ones(1, 1, 1), torch.Size([4]))[0][0]
    tensor([[[0.2500, 0.2500, 0.2500, 0.2500]]])

    Args:
        function: linear map of tensors (B, *in) for any B; each example of the result depends on that example only.
        terms: number of roundings on the way to an output or to a coefficient of a row on the input, at most.
        diagonal: see :class:`robust.bounds.operations.Affine`.
    """

    def __init__(self, function: Callable[..., Tensor], terms: int = 0, *, diagonal: bool = False) -> None:
        self.function, self._terms, self._diagonal = function, terms, diagonal

    @property
    def diagonal(self) -> bool:
        """The constructor's ``diagonal``."""
        return self._diagonal

    def terms(self, *shapes: torch.Size) -> int:
        """The constructor's ``terms``, whatever the shapes are."""
        return self._terms

    def center(self, *centers: Tensor) -> Tensor:
        """W c."""
        return self.function(*centers)

    def radius(self, *radii: Tensor) -> Tensor:
        """|W| r, where W is not negative."""
        return self.function(*radii)

    def rows(self, A: Tensor, *shapes: torch.Size) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """A W by the adjoint."""
        differentiable = torch.is_grad_enabled() and A.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            inputs = [A.new_zeros(A.shape[0] * A.shape[1], *shape).requires_grad_() for shape in shapes]
            outputs = self.function(*inputs)
            rows = torch.autograd.grad(outputs, inputs, A.flatten(0, 1), create_graph=differentiable)
        return tuple(row.view(*A.shape[:2], *shape) for row, shape in zip(rows, shapes, strict=True)), 0.0


class Reshape(Affine):
    """The same numbers in another shape.

    >>> Reshape(torch.Size([4])).center(torch.zeros(1, 2, 2)).shape
    torch.Size([1, 4])

    Args:
        output: shape of one example's results.
    """

    def __init__(self, output: torch.Size) -> None:
        self.output = output

    @property
    def diagonal(self) -> bool:
        """Always."""
        return True

    def terms(self, *shapes: torch.Size) -> int:
        """Nothing is rounded."""
        return 0

    def center(self, *centers: Tensor) -> Tensor:
        """The same numbers."""
        return centers[0].reshape(len(centers[0]), *self.output)

    def radius(self, *radii: Tensor) -> Tensor:
        """The same numbers."""
        return self.center(*radii)

    def rows(self, A: Tensor, *shapes: torch.Size) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """The same rows."""
        return (A.reshape(*A.shape[:2], *shapes[0]),), 0.0

    def error(self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic) -> Tensor | None:
        """The same errors."""
        return self.center(errors[0])

    def enclosure(self, inputs: tuple[Interval, ...], arithmetic: Arithmetic) -> Interval:
        """The interval: nothing is rounded."""
        return self.interval(*inputs)

    def row_error(
        self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic
    ) -> Tensor | None:
        """Nothing is rounded."""
        return self.center(torch.zeros_like(errors[0]))


@register("flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze")
def _reshape(x: Operand, *shape: Any, **named: Any) -> Reshape:
    return Reshape(x.output)


@register("contiguous", "clone", "detach", "to", "float", "double", "type", "requires_grad")
@register("identity")
def _identity(x: Operand, *arguments: Any, **named: Any) -> None:
    """The identity; a lower precision is refused where values are compared."""


def _dropout(x: Operand, p: float = 0.5, training: bool = True, inplace: bool = False) -> None:
    """The identity in evaluation mode."""
    if training and p > 0:
        raise UnboundedError("it drops activations in evaluation mode, too; pass training=self.training")


register("dropout", "dropout1d", "dropout2d", "dropout3d")(_dropout)


@register("alpha_dropout", "feature_alpha_dropout")
def _alpha_dropout(x: Operand, p: float = 0.5, training: bool = False, inplace: bool = False) -> None:
    _dropout(x, p, training)


def _moved(function: Callable[..., Any], *arguments: Any, part: int | None = None, **named: Any) -> LinearMap:
    """A function that moves the values of its first argument, or picks some, perhaps several times."""
    x, *rest = arguments
    _require_whole_batch(name_of(function), x, rest, named)

    def moved(h: Tensor) -> Tensor:
        result = function(h, *rest, **named)
        moved: Tensor = result if part is None else result[part]
        return moved

    # the coefficients of a value's copies are added up
    return LinearMap(moved, _copies(name_of(function), x, rest, named))


def _require_whole_batch(name: str, x: Operand, arguments: list[Any], named: dict[str, Any]) -> None:
    """Refuse what takes a part of the images, or puts them in another order: batches have any number of images."""
    axes = len(x.shape) + 1
    if name == "getitem":
        whole = _takes_all_images(arguments[0], axes)
    else:
        whole = not any(isinstance(axis, int) and axis % axes == 0 for axis in _axes(name, arguments, named))
    if not whole:
        raise UnboundedError("it takes a part of a batch, or puts its images in another order")


def _axes(name: str, arguments: list[Any], named: dict[str, Any]) -> list[Any]:
    """The axes along which a call moves values; none for calls that move whole axes or repeat values."""
    if name not in AXES:
        return []
    own = arguments[AXES[name] :] if name == "flip" else arguments[AXES[name] : AXES[name] + 1]
    given = named.get("dims" if name in ("flip", "roll") else "dim", own or 0)
    parts = given if isinstance(given, list | tuple) else [given]
    return [axis for part in parts for axis in (part if isinstance(part, list | tuple) else [part])]


def _takes_all_images(key: Any, axes: int) -> bool:
    """Whether an index of a tensor with so many axes leaves the first one as it is."""
    parts = [part for part in (key if isinstance(key, tuple) else (key,)) if part is not None]
    if not parts or (parts[0] is Ellipsis and len(parts) - 1 < axes):
        return True
    first = parts[1] if parts[0] is Ellipsis else parts[0]
    return isinstance(first, slice) and first.start in (None, 0) and first.stop is None and first.step in (None, 1)


def _copies(name: str, x: Operand, arguments: list[Any], named: dict[str, Any]) -> int:
    """The number of times that a value can be in the result, at most; 0 if each is there once at most."""
    if name in ("repeat", "repeat_interleave", "tile"):
        return math.prod(x.output)
    chosen = [part for each in (*arguments, *named.values()) for part in (each if isinstance(each, tuple) else (each,))]
    by_indices = name in ("getitem", "index_select") and any(isinstance(part, Tensor | list) for part in chosen)
    return math.prod(x.output) if by_indices else 0


@register("expand", "broadcast_to")
def _expand(x: Operand, *sizes: Any, **named: Any) -> LinearMap:
    """Copies along axes of size 1; the sizes may name the number of images, which differs from batch to batch."""
    return LinearMap(lambda h: h.expand(len(h), *x.output), math.prod(x.output))


# position of the axis among the arguments behind the tensor; without one it is 0
AXES = {
    **{"chunk": 1, "split": 1, "tensor_split": 1, "roll": 1},
    **{"unbind": 0, "narrow": 0, "select": 0, "index_select": 0, "flip": 0},
}
MOVES = (
    *("permute", "transpose", "swapaxes", "movedim", "T", "mT", "flip", "roll"),
    *("__getitem__", "narrow", "select", "index_select", "chunk", "split", "unbind", "tensor_split"),
    *("repeat", "repeat_interleave", "tile"),
)
for _name in MOVES:
    _method = getattr(torch.Tensor, _name)
    register(_name.strip("_"))(partial(_moved, _method.__get__ if _name in ("T", "mT") else _method))
for _function in (F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle):
    register(_function)(partial(_moved, _function))


@register("cat", "concat", "concatenate", "stack")
def _cat(tensors: Any, dim: int = 0) -> LinearMap:
    if not all(isinstance(tensor, Operand) for tensor in tensors):
        raise UnboundedError("it joins activations with a constant")
    stacked = len(tensors[0].shape) < len(tensors[0].output)
    return LinearMap(lambda *h: torch.stack(h, dim) if stacked else torch.cat(h, dim))


@register("pad")
def _pad(x: Operand, pad: Any, mode: str = "constant", value: float | None = None) -> LinearMap:
    if mode == "constant" and value:
        raise UnboundedError("it pads with another value than 0")
    # along an axis a value is in its own place and at most in all that are added; its copies' coefficients are added up
    copies = math.prod(1 + max(before, 0) + max(after, 0) for before, after in zip(pad[::2], pad[1::2], strict=True))
    return LinearMap(lambda h: F.pad(h, pad, mode), copies + 1, diagonal=mode == "constant")


def _reduced(function: Callable[..., Tensor], x: Operand, *arguments: Any, **named: Any) -> LinearMap:
    terms = math.prod(x.shape) // max(math.prod(x.output), 1) + 2
    return LinearMap(lambda h: function(h, *arguments, **named), terms)


register("mean")(partial(_reduced, torch.Tensor.mean))
register("sum")(partial(_reduced, torch.Tensor.sum))


@register("avg_pool2d")
def _avg_pool2d(x: Operand, kernel_size: Any, *arguments: Any, **named: Any) -> LinearMap:
    return LinearMap(lambda h: F.avg_pool2d(h, kernel_size, *arguments, **named), math.prod(pair(kernel_size)) + 2)


@register("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(x: Operand, output_size: Any) -> LinearMap:
    return LinearMap(lambda h: F.adaptive_avg_pool2d(h, output_size), math.prod(x.shape[-2:]) + 2)


@register("interpolate", "upsample")
def _interpolate(
    x: Operand, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **named: Any
) -> LinearMap:
    if mode not in ("nearest", "nearest-exact", "bilinear", "area"):  # of others, weights are of both signs
        raise UnboundedError(f"mode {mode} has weights of both signs; set mode to bilinear")
    return LinearMap(lambda h: F.interpolate(h, size, scale_factor, mode, **named), math.prod(x.output) + 8)
