"""Sums, differences and products: of two activations, or of one and a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust.bounds.operations.base import Affine, Arithmetic, Interval, Operation, broadcast, fit
from robust.bounds.operations.linear import Scale
from robust.bounds.operations.registry import Operand, UnboundedError, register


class Sum(Affine):
    """h_1 + sign h_2, whose shapes broadcast.

    >>> Sum(-1).center(torch.tensor([[3.0]]), torch.tensor([[1.0]])), Sum(-1).radius(torch.ones(1, 1), torch.ones(1, 1))
    (tensor([[2.]]), tensor([[2.]]))

    Args:
        sign: 1 or -1.
    """

    def __init__(self, sign: int = 1) -> None:
        self.sign = sign

    def terms(self, *shapes: torch.Size) -> int:
        """One sum, and those of the coefficients of an input that is spread."""
        return 1 + max(broadcast(*shapes).numel() // max(shape.numel(), 1) for shape in shapes)

    def center(self, *centers: Tensor) -> Tensor:
        """c_1 + sign c_2."""
        first, second = aligned(*centers)
        return first + second if self.sign == 1 else first - second

    def radius(self, *radii: Tensor) -> Tensor:
        """r_1 + r_2."""
        first, second = aligned(*radii)
        return first + second

    def rows(self, A: Tensor, *shapes: torch.Size) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """A and sign A."""
        return (fit(A, shapes[0]), fit(A if self.sign == 1 else -A, shapes[1])), 0.0


class Product(Operation):
    """h_1 h_2, whose shapes broadcast.

    Its linear bounds are those of McCormick, averaged: h_1 h_2 is c_2 h_1 + c_1 h_2 - c_1 c_2 within r_1 r_2.

    >>> a, b = Interval(torch.tensor([[1.0]]), torch.tensor([[1.0]])), Interval(torch.tensor([[3.0]]), torch.ones(1, 1))
    >>> Product().interval(a, b)  # [0, 2] times [2, 4]
    Interval(center=tensor([[4.]]), radius=tensor([[4.]]))
    """

    def interval(self, *inputs: Interval) -> Interval:
        """The least and the largest of the four products of ends."""
        first, second = _aligned(*inputs)
        ends = [one * other for one in (first.lower, first.upper) for other in (second.lower, second.upper)]
        low, high = torch.minimum(ends[0], ends[1]), torch.maximum(ends[0], ends[1])
        for end in ends[2:]:
            low, high = torch.minimum(low, end), torch.maximum(high, end)
        return Interval.between(low, high)

    def backward(self, A: Tensor, *inputs: Interval) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """A c_2, A c_1, and |A| r_1 r_2 - A c_1 c_2."""
        first, second = _aligned(*inputs)
        constant = A.abs() * (first.radius * second.radius)[:, None] - A * (first.center * second.center)[:, None]
        rows = (A * second.center[:, None], A * first.center[:, None])
        shapes = (h.center.shape[1:] for h in inputs)
        return tuple(map(fit, rows, shapes)), constant.flatten(2).sum(-1)

    def error(self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic) -> Tensor | None:
        """The errors' part in the product, and its rounding."""
        (first, second), (e, f) = _aligned(*inputs), aligned(*errors)
        error = first.size * f + second.size * e + e * f + arithmetic.gamma(8) * first.size * second.size
        return arithmetic.inflation(8) * error

    def row_error(
        self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic
    ) -> Tensor | None:
        """Inputs outside of their intervals by e and f, and the rounding of coefficients and constants."""
        (first, second), (e, f) = _aligned(*inputs), aligned(*errors)
        spread = first.size[0].numel()
        whole = (first.size + e) * (second.size + f)
        rounded = (arithmetic.gamma(8 + spread) + 4 * arithmetic.of_sum(whole)) * whole
        return arithmetic.inflation(8) * (first.radius * f + second.radius * e + e * f + rounded)


def aligned(*values: Tensor) -> tuple[Tensor, ...]:
    """Values (B, *shape) with as many axes each, so that they broadcast example by example."""
    axes = max(value.dim() for value in values)
    return tuple(value.view(len(value), *[1] * (axes - value.dim()), *value.shape[1:]) for value in values)


def _aligned(*inputs: Interval) -> list[Interval]:
    centers, radii = aligned(*(h.center for h in inputs)), aligned(*(h.radius for h in inputs))
    shape = broadcast(*(center.shape for center in centers))
    return [Interval(c.expand(shape), r.expand(shape)) for c, r in zip(centers, radii, strict=True)]


def scale(x: Operand, factor: Any = None, shift: Any = None) -> Scale:
    """``factor x + shift`` with constants, which broadcast with x and its batch."""
    output = None if x.output == x.shape else x.output
    factor, shift = (None if value is None else _constant(value, x) for value in (factor, shift))
    return Scale(factor, shift, output=output)


def _constant(value: Any, x: Operand) -> Tensor:
    """A constant as a tensor of as many axes as an example's result at most."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)  # rounds when it is used
    if (
        tensor.dim() == len(x.output) + 1
    ):  # with an axis of the batch: the same for each of its images, which is checked
        tensor = tensor[0]
    return tensor


@register("add", "iadd", "radd")
def _add(x: Any, y: Any, *, alpha: float = 1) -> Operation:
    if alpha != 1:
        raise UnboundedError("give alpha as a factor of its own")
    if isinstance(x, Operand) and isinstance(y, Operand):
        return Sum()
    return scale(x, shift=y) if isinstance(x, Operand) else scale(y, shift=x)


@register("sub", "isub", "subtract")
def _sub(x: Any, y: Any, *, alpha: float = 1) -> Operation:
    if alpha != 1:
        raise UnboundedError("give alpha as a factor of its own")
    if isinstance(x, Operand) and isinstance(y, Operand):
        return Sum(-1)
    return scale(x, shift=-y) if isinstance(x, Operand) else scale(y, -1, x)


@register("rsub")
def _rsub(x: Any, y: Any, *, alpha: float = 1) -> Operation:
    if isinstance(x, Operand) and isinstance(y, Operand):
        raise UnboundedError("write it as a difference: y - x")
    if alpha != 1:
        raise UnboundedError("give alpha as a factor of its own")
    return scale(x, -1, y) if isinstance(x, Operand) else scale(y, shift=-x)


@register("neg", "negative")
def _neg(x: Operand) -> Operation:
    return scale(x, -1)


@register("mul", "imul", "rmul", "multiply")
def _mul(x: Any, y: Any) -> Operation:
    if isinstance(x, Operand) and isinstance(y, Operand):
        return Product()
    return scale(x, y) if isinstance(x, Operand) else scale(y, x)


@register("div", "truediv", "itruediv", "idiv", "true_divide", "divide")
def _div(x: Any, y: Any, *, rounding_mode: str | None = None) -> Operation:
    if isinstance(y, Operand):
        raise UnboundedError("it divides by activations; multiply with their reciprocal")
    if rounding_mode is not None:
        raise UnboundedError("it rounds the quotient")
    return scale(x, 1 / y)
