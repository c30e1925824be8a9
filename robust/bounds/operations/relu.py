"""ReLU as fused functions: it is most of the elementwise work of training by bounds, which memory bandwidth limits.

As autograd's own chain it takes twice the passes, and masks as bool tensors or ``where`` are several times slower on
CPU than ``threshold_backward`` (grad where x > 0, else 0).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robust.bounds.operations.base import Arithmetic, Interval, Operation
from robust.bounds.operations.registry import Operand, register


class _IntervalReLU(torch.autograd.Function):
    """ReLU of an interval, [relu(c - r), relu(c + r)], with its gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        upper = torch.add(center, radius).clamp_(min=0)
        lower = torch.sub(center, radius).clamp_(min=0)
        new_center = lower.lerp_(upper, 0.5)
        new_radius = upper.sub_(new_center)
        # the next layer keeps both; they tell the ends' signs, but for a lower end that rounding loses beside the upper
        ctx.save_for_backward(new_center, new_radius)
        ctx.set_materialize_grads(False)
        return new_center, new_radius

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_center: Tensor | None, grad_radius: Tensor | None) -> tuple[Tensor, Tensor]:
        new_center, new_radius = ctx.saved_tensors
        grad_center = torch.zeros_like(new_center) if grad_center is None else grad_center
        grad_radius = torch.zeros_like(new_center) if grad_radius is None else grad_radius
        by_lower = _where_above(grad_center - grad_radius, new_center - new_radius)
        by_upper = _where_above(grad_center + grad_radius, new_center)
        grad_center = by_lower.lerp_(by_upper, 0.5)
        return grad_center, by_upper.sub_(grad_center)


class _RelaxReLU(torch.autograd.Function):
    """Upper-bounds rows on the output of a ReLU by rows on its input, with the gradient in closed form.

    For the pre-activation interval center -+ radius the upper line has slope a = clamp((center + radius) /
    (2 radius), 0, 1) and intercept b = max(radius - center, 0) a; the lower line passes the origin with slope 1 where
    a > 1/2, i.e. center > 0, else 0 (CROWN's adaptive choice). A positive coefficient takes the upper line, a negative
    one the lower line. ``half`` is half the upper end where the interval holds 0: the center of the ReLU's interval.
    Shapes: A (B, S, *shape), center, radius and half (B, *shape); returns (B, S, *shape) and (B, S).
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, center: Tensor, radius: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        slope, intercept = _upper_line(center, radius)
        positive = A.clamp(min=0)
        constant = _over_activations(positive, intercept)
        del intercept
        by_lower = _where_above(A - positive, slope[:, None], 0.5)
        rows = by_lower.addcmul_(positive, slope[:, None])
        # the layers around keep half the upper end, the result's center, and the rows, which tell A's positive part
        ctx.save_for_backward(rows, slope, half)
        return rows, constant

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_rows: Tensor, grad_constant: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, slope, half = ctx.saved_tensors
        grad_constant = grad_constant.view(*grad_constant.shape, *[1] * (rows.dim() - 2))
        intercept = torch.addcmul(half, half, slope, value=-1).mul_(2)  # 0 where the ReLU is linear
        grad_A = (grad_rows * slope[:, None]).addcmul_(grad_constant, intercept[:, None])  # by the upper line
        del intercept
        by_lower = torch.ops.aten.threshold_backward(grad_rows, slope[:, None], 0.5)
        # where A is positive and its row is not, the slope is 0, and so is the gradient by the upper line
        grad_A = _where_above(grad_A.sub_(by_lower), rows).add_(by_lower)
        del by_lower
        positive = rows.clamp(min=0)  # the positive part of A, times the slope
        by_slope = _where_above(_over_rows(positive * grad_rows).div_(half), half).mul_(0.5)
        by_intercept = _where_unstable(_over_rows(positive.mul_(grad_constant)), slope)  # times the slope, too
        # unstable: d slope = (1, 1 - 2 slope) / width, d intercept = (1 - 2 slope, (1 - slope)^2 + slope^2) in (dc, dr)
        grad_center = _where_unstable(by_slope.addcdiv_(by_intercept, slope), slope).sub_(by_intercept, alpha=2)
        rest = by_intercept.addcmul_(by_intercept, slope, value=-1)
        grad_radius = torch.add(grad_center, rest, alpha=2, out=rest).addcmul_(grad_center, slope, value=-2)
        return grad_A, grad_center, grad_radius, None


def _upper_line(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the upper line."""
    # a width above the least normal number would flatten the line where activations are small
    slope = torch.add(center, radius).div_((2 * radius).clamp_(min=torch.finfo(radius.dtype).tiny)).clamp_(0, 1)
    return slope, torch.sub(radius, center).clamp_(min=0).mul_(slope)


def _over_activations(A: Tensor, x: Tensor) -> Tensor:
    """Sum of rows (B, S, *shape) times values (B, *shape), in float32 at least: (B, S)."""
    dtype = torch.promote_types(A.dtype, torch.float32)
    with torch.autocast(A.device.type, enabled=False):
        return (A.flatten(2).to(dtype) @ x.flatten(1)[..., None].to(dtype)).squeeze(-1)


def _over_rows(A: Tensor) -> Tensor:
    """Sum over the rows, (B, S, *shape) to (B, *shape); a sum of one row would copy it."""
    return A.squeeze(1) if A.shape[1] == 1 else A.sum(1)


def _where_above(grad: Tensor, x: Tensor, threshold: float = 0.0) -> Tensor:
    """``grad`` where x is above the threshold, else 0, in its place: new memory takes longer than the values."""
    return torch.ops.aten.threshold_backward.grad_input(  # type: ignore[no-any-return]
        grad, x, threshold, grad_input=grad
    )


def _where_unstable(grad: Tensor, slope: Tensor) -> Tensor:
    """``grad`` where 0 < slope < 1, else 0, in its place."""
    return torch.ops.aten.hardtanh_backward.grad_input(  # type: ignore[no-any-return]
        grad, slope, 0, 1, grad_input=grad
    )


class ReLU(Operation):
    """max(h, 0).

    >>> ReLU().interval(Interval(torch.tensor([[0.5]]), torch.tensor([[1.5]])))  # of [-1, 2]
    Interval(center=tensor([[1.]]), radius=tensor([[1.]]))
    """

    def interval(self, *inputs: Interval) -> Interval:
        """The ends' values."""
        return Interval(*_IntervalReLU.apply(*inputs[0]))

    def bends(self, h: Interval) -> Tensor:
        """Where 0 is inside the interval."""
        return h.center.abs() < h.radius

    def backward(self, A: Tensor, *inputs: Interval) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """The upper line of a positive coefficient, the lower line of a negative one."""
        return self.backward_from(self.interval(Interval(*(end.detach() for end in inputs[0]))), A, *inputs)

    def backward_from(
        self, result: Interval, A: Tensor, *inputs: Interval
    ) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """The same; its gradient needs the center of the result, not the input.

        No linear bound tightens the upper end of a unit that bends: the line passes through it.
        """
        rows, constant = _RelaxReLU.apply(A.to(result.center.dtype), *inputs[0], result.center.detach())
        return (rows,), constant

    def error(self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic) -> Tensor | None:
        """The error of the input and the rounding of the ends; less where nearly all inputs are negative, or all."""
        h = inputs[0]
        error = torch.add(errors[0], h.size, alpha=8 * arithmetic.gamma(1))
        return torch.minimum(error, h.upper.add_(error).clamp_(min=0), out=error)

    def enclosure(self, inputs: tuple[Interval, ...], arithmetic: Arithmetic) -> Interval:
        """The ends' values, of which the computed ones differ by a few units in the last place of the upper one."""
        center, radius = self.interval(*inputs)
        return Interval(center, radius.add_(center, alpha=16 * arithmetic.gamma(1)))  # the radius is at most the center

    def row_error(
        self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic
    ) -> Tensor | None:
        """Distance from the interval by which an activation may be above the upper line; 0 where ReLU is linear."""
        h = inputs[0]
        bend = h.radius - h.center.abs()  # distance of 0 from the nearer end, if it is inside
        error = torch.add(errors[0], h.size, alpha=8 * arithmetic.gamma(1))
        return torch.minimum(error, (bend + error).clamp(min=0)) + arithmetic.of_sum(bend) * bend.clamp(min=0)


@register("relu")
def _relu(x: Operand, inplace: bool = False) -> ReLU:
    return ReLU()
