"""Linear bound propagation backwards through the network (CROWN, Zhang et al. 2018), given intermediate intervals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust.bounds.interval import Interval
from robust.bounds.layers import Layer, ReLULayer
from robust.bounds.rounding import RoundingErrors, inflated


class _RelaxReLU(torch.autograd.Function):
    """Upper-bounds rows on the output of a ReLU by rows on its input, with the gradient in closed form.

    For the pre-activation interval center -+ radius the upper line has slope a = clamp((center + radius) /
    (2 radius), 0, 1) and intercept b = max(radius - center, 0) a; the lower line passes the origin with slope 1 where
    a > 1/2, i.e. center > 0, else 0 (CROWN's adaptive choice). A positive coefficient takes the upper line, a negative
    one the lower line. Shapes: A (B, S, *shape), center and radius (B, *shape); returns (B, S, *shape) and (B, S).
    """

    @staticmethod
    def forward(A: Tensor, center: Tensor, radius: Tensor) -> tuple[Tensor, ...]:
        # the least normal number: a larger guard would flatten the line where activations are small
        width = (2 * radius).clamp_(min=torch.finfo(radius.dtype).tiny)
        slope = torch.add(center, radius).div_(width).clamp_(0, 1)
        intercept = torch.sub(radius, center).clamp_(min=0).mul_(slope)
        positive = A.clamp(min=0)
        constant = (positive * intercept[:, None]).flatten(2).sum(-1)
        by_lower = torch.ops.aten.threshold_backward(A - positive, center[:, None], 0)
        return by_lower.addcmul_(positive, slope[:, None]), constant, slope, intercept, width

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        A, center, _ = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(A, center, *output[2:])

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor, grad_constant: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        A, center, slope, intercept, width = ctx.saved_tensors
        grad_constant = grad_constant.view(*grad_constant.shape, *[1] * (A.dim() - 2))
        by_lower = torch.ops.aten.threshold_backward(grad_rows, center[:, None], 0)
        by_upper = (grad_rows * slope[:, None]).addcmul_(grad_constant, intercept[:, None]).sub_(by_lower)
        grad_A = torch.ops.aten.threshold_backward(by_upper, A, 0).add_(by_lower)
        # unstable: d slope = (1, 1 - 2 slope) / width, d intercept = (1 - 2 slope, (1 - slope)^2 + slope^2) in (dc, dr)
        positive = A.clamp(min=0)
        by_slope = _where_unstable((positive * grad_rows).sum(1), slope).div_(width)
        by_intercept = _where_unstable((positive.mul_(grad_constant)).sum(1), slope)
        twist = torch.mul(slope, -2).add_(1)
        grad_center = torch.addcmul(by_slope, twist, by_intercept)
        return grad_A, grad_center, by_slope.mul_(twist).add_(by_intercept.mul_(twist.square_().add_(1).mul_(0.5)))


def _where_unstable(grad: Tensor, slope: Tensor) -> Tensor:
    """``grad`` where 0 < slope < 1, else 0."""
    masked: Tensor = torch.ops.aten.hardtanh_backward(grad, slope, 0, 1)
    return masked


def upper_bound(layers: list[Layer], inputs: list[Interval], A: Tensor) -> Tensor:
    """Upper bounds of ``A z`` over the box, for the network's outputs z.

    Args:
        layers: the network's layers in forward order.
        inputs: the interval at each layer's input, the box first (see ``interval.propagate``).
        A: rows on the outputs, (B, S, K).

    Returns:
        Shape (B, S).
    """
    return _upper_bound(layers, inputs, A, None)[0]


def upper_bound_and_error(
    layers: list[Layer], inputs: list[Interval], A: Tensor, errors: RoundingErrors
) -> tuple[Tensor, Tensor]:
    """The same bounds, and by how much an exact ``A z`` may exceed them; both (B, S)."""
    bound, error = _upper_bound(layers, inputs, A, errors.row_weights())
    return bound, inflated(error, max(interval.center[0].numel() for interval in inputs))


def _upper_bound(
    layers: list[Layer], inputs: list[Interval], A: Tensor, weights: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    constant = torch.zeros(A.shape[:2], dtype=A.dtype, device=A.device)
    error = torch.zeros_like(constant)
    for index in reversed(range(len(layers))):
        layer, interval = layers[index], inputs[index]
        if weights is not None:
            error = error + _weighed(A, weights[index])
        if isinstance(layer, ReLULayer):
            A, beta = _RelaxReLU.apply(A, *interval)[:2]
        else:
            A, beta = layer.backward(A, interval.center.shape[1:])
        constant = constant + beta
    if weights is not None:
        error = error + _weighed(A, weights[-1])
    A, box = A.flatten(2), Interval(*(side.flatten(1)[..., None] for side in inputs[0]))
    return constant + (A @ box.center + A.abs() @ box.radius).squeeze(-1), error


def _weighed(A: Tensor, weight: Tensor) -> Tensor:
    """Sum of absolute coefficients (B, S, *shape) times weights (B, *shape): (B, S)."""
    return (A.flatten(2).abs() @ weight.flatten(1)[..., None]).squeeze(-1)
