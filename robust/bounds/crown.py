"""Linear bound propagation backwards through the network (CROWN, Zhang et al. 2018), given intermediate intervals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust.bounds.interval import Interval
from robust.bounds.layers import Layer, ReLULayer


class RelaxReLU(torch.autograd.Function):
    """Upper-bounds rows on the output of a ReLU by rows on its input, with the gradient in closed form.

    For the pre-activation interval center -+ radius the upper line has slope a = clamp((center + radius) /
    (2 radius), 0, 1) and intercept b = max(radius - center, 0) a; the lower line passes the origin with slope 1 where
    a > 1/2, i.e. center > 0, else 0 (CROWN's adaptive choice). A positive coefficient takes the upper line, a negative
    one the lower line. Shapes: A (B, S, *shape), center and radius (B, *shape); returns (B, S, *shape) and (B, S).
    """

    @staticmethod
    def forward(A: Tensor, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        slope, intercept = RelaxReLU.upper_line(center, radius)
        positive = A.clamp(min=0)
        constant = torch.einsum("bsn,bn->bs", positive.flatten(2), intercept.flatten(1))
        lower_slope = (center > 0).to(A.dtype)
        # A+ a + A- d = A d + A+ (a - d)
        return torch.addcmul(A * lower_slope[:, None], positive, (slope - lower_slope)[:, None]), constant

    @staticmethod
    def upper_line(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        slope = torch.add(center, radius).div_((2 * radius).clamp_(min=1e-8)).clamp_(0, 1)
        return slope, torch.sub(radius, center).clamp_(min=0).mul_(slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        A, center, radius = ctx.saved_tensors
        grad_rows, grad_constant = grads
        slope, intercept = RelaxReLU.upper_line(center, radius)
        wide_constant = grad_constant.view(*grad_constant.shape, *[1] * (A.dim() - 2))
        upper = grad_rows * slope[:, None] + wide_constant * intercept[:, None]
        grad_A = torch.where(A > 0, upper, grad_rows * (center > 0)[:, None])
        positive = A.clamp(min=0)
        # d slope: (dc, dr) = ((1), (1 - 2 slope)) / 2 radius; d intercept: (1 - 2 slope, (1 - slope)^2 + slope^2)
        unstable = (center.abs() < radius).to(A.dtype)
        by_slope = (positive * grad_rows).sum(1).mul_(unstable).div_((2 * radius).clamp_(min=1e-8))
        by_intercept = (positive * wide_constant).sum(1).mul_(unstable)
        twist = 1 - 2 * slope
        grad_center = torch.addcmul(by_slope, twist, by_intercept)
        grad_radius = twist * by_slope + by_intercept * (0.5 + 0.5 * twist * twist)
        return grad_A, grad_center, grad_radius


def upper_bound(layers: list[Layer], inputs: list[Interval], A: Tensor) -> Tensor:
    """Upper bounds of ``A z`` over the box, for the network's outputs z.

    Args:
        layers: the network's layers in forward order.
        inputs: the interval at each layer's input, the box first (see ``interval.propagate``).
        A: rows on the outputs, (B, S, K).

    Returns:
        Shape (B, S).
    """
    constant = torch.zeros(A.shape[:2], dtype=A.dtype, device=A.device)
    for layer, interval in zip(reversed(layers), reversed(inputs), strict=True):
        if isinstance(layer, ReLULayer):
            A, beta = RelaxReLU.apply(A, *interval)
        else:
            A, beta = layer.backward(A, interval.center.shape[1:])
        constant = constant + beta
    A, box = A.flatten(2), Interval(*(side.flatten(1)[..., None] for side in inputs[0]))
    return constant + (A @ box.center + A.abs() @ box.radius).squeeze(-1)
