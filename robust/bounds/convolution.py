"""A convolution and its adjoint, both differentiable.

PyTorch's own are used, except for one input channel on CPU: there oneDNN's gradient with respect to the input, and
its transposed convolution, take 5 to 12 times as long as the same sums as a matrix product and ``fold`` (DM-small's
first layer on MNIST, batch 256, one thread: 5.3 ms against 1.0 ms). That gradient is what budgets are learned from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ConvSettings(NamedTuple):
    """Stride, padding and dilation as (height, width), and the number of groups."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int = 1


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, settings: ConvSettings) -> Tensor:
    """Convolve (N, C, H, W) with weight (O, C / groups, kh, kw) and add the bias (O,)."""
    if _one_channel_on_cpu(weight, settings.groups) and x.requires_grad:
        x, weight = _under_autocast(x), _under_autocast(weight)
        bias = None if bias is None else _under_autocast(bias)
        out: Tensor = _OneChannelConv.apply(x, weight, bias, settings)
        return out
    return F.conv2d(x, weight, bias, *settings)


def adjoint(A: Tensor, weight: Tensor, shape: torch.Size, settings: ConvSettings) -> Tensor:
    """Rows (N, *out) on the output of the convolution as rows (N, C, H, W) on its input, which has ``shape``."""
    if _one_channel_on_cpu(weight, settings.groups):
        out: Tensor = _OneChannelAdjoint.apply(_under_autocast(A), _under_autocast(weight), shape, settings)
        return out
    sides = zip(shape[1:], A.shape[-2:], weight.shape[-2:], *settings[:3], strict=True)
    # rows and columns at the far edge that no kernel window reached have coefficient zero
    rest = [size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for size, out, k, s, p, d in sides]
    return F.conv_transpose2d(
        A, weight, None, settings.stride, settings.padding, rest, settings.groups, settings.dilation
    )


def _one_channel_on_cpu(weight: Tensor, groups: int = 1) -> bool:
    return weight.shape[1] == 1 == groups and weight.device.type == "cpu"


def _under_autocast(x: Tensor) -> Tensor:
    """In the precision that autocast gives to PyTorch's own convolutions."""
    on = x.dtype != torch.float64 and torch.is_autocast_enabled("cpu")
    return x.to(torch.get_autocast_dtype("cpu")) if on else x


def _fold(A: Tensor, weight: Tensor, shape: torch.Size, settings: ConvSettings) -> Tensor:
    """The adjoint of a one-channel convolution: coefficients times the kernel, summed where these overlap."""
    patches = weight.flatten(1).T @ A.flatten(2)
    return F.fold(
        patches, shape[1:], weight.shape[2:], settings.dilation, padding=settings.padding, stride=settings.stride
    )


def _weight_gradient(grad_out: Tensor, x: Tensor, weight: Tensor, settings: ConvSettings) -> Tensor:
    stride, padding, dilation, groups = settings
    _, grad, _ = torch.ops.aten.convolution_backward(
        grad_out, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (False, True, False)
    )
    return grad  # type: ignore[no-any-return]


class _OneChannelConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: ConvSettings) -> Tensor:
        ctx.settings = settings
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = _fold(grad, weight, x.shape[1:], ctx.settings) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(grad, x, weight, ctx.settings) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None


class _OneChannelAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, weight: Tensor, shape: torch.Size, settings: ConvSettings) -> Tensor:
        ctx.settings = settings
        ctx.save_for_backward(A, weight)
        return _fold(A, weight, shape, settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        A, weight = ctx.saved_tensors
        grad_A = F.conv2d(grad, weight, None, *ctx.settings) if ctx.needs_input_grad[0] else None
        # A and the weight enter the adjoint as the output's gradient and the weight enter the convolution's backward
        grad_weight = _weight_gradient(A, grad, weight, ctx.settings) if ctx.needs_input_grad[1] else None
        return grad_A, grad_weight, None, None
