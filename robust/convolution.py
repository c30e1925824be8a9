"""A convolution and its adjoint, both differentiable.

PyTorch's own are used, except for few input channels on CPU: there oneDNN's gradient with respect to the input, and
its transposed convolution, take several times as long as the same sums as a matrix product and ``fold`` (the attacks of
``benchmarks/run.py`` over plain passes). That gradient is what attacks follow and what budgets are learned from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHANNELS, _RATIO = 3, 10  # at most so many input channels, each with so many output channels: measured to be faster


class ConvSettings(NamedTuple):
    """Stride, padding and dilation as (height, width), and the number of groups."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int = 1


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, settings: ConvSettings) -> Tensor:
    """Convolve (N, C, H, W) with weight (O, C / groups, kh, kw) and add the bias (O,)."""
    if x.requires_grad and _few_channels_on_cpu(weight, settings.groups):
        x, weight = under_autocast(x), under_autocast(weight)
        bias = None if bias is None else under_autocast(bias)
        out: Tensor = _FewChannelsConv.apply(x, weight, bias, settings)
        return out
    return F.conv2d(x, weight, bias, *settings)


def adjoint(A: Tensor, weight: Tensor, shape: torch.Size, settings: ConvSettings) -> Tensor:
    """Rows (N, *out) on the output of the convolution as rows (N, C, H, W) on its input, which has ``shape``."""
    if _few_channels_on_cpu(weight, settings.groups):
        out: Tensor = _FewChannelsAdjoint.apply(under_autocast(A), under_autocast(weight), shape, settings)
        return out
    sides = zip(shape[1:], A.shape[-2:], weight.shape[-2:], *settings[:3], strict=True)
    # rows and columns at the far edge that no kernel window reached have coefficient zero
    rest = [size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for size, out, k, s, p, d in sides]
    return F.conv_transpose2d(
        A, weight, None, settings.stride, settings.padding, rest, settings.groups, settings.dilation
    )


@contextmanager
def fast_image_gradients(network: nn.Module) -> Iterator[None]:
    """Let the gradient to the input of the network's convolutions of few channels be computed fast, for attacks.

    >>> layer, x = nn.Conv2d(1, 16, 3), torch.zeros(2, 1, 4, 4, requires_grad=True)
    >>> with fast_image_gradients(layer):
    ...     gradient, = torch.autograd.grad(layer(x).sum(), x)
    >>> bool(torch.isclose(gradient[0, 0, 0, 0], layer.weight[:, 0, 0, 0].sum()))
    True
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and _can_be_fast(layer)]
    for layer in layers:
        layer._conv_forward = _ImageConv(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer._conv_forward


def _can_be_fast(layer: nn.Conv2d) -> bool:
    """Whether it is PyTorch's own layer and has few channels; its weight, which may be computed, is not looked at."""
    plain = type(layer)._conv_forward is nn.Conv2d._conv_forward and "_conv_forward" not in vars(layer)
    padded = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and padded and _few_channels(layer.out_channels, layer.in_channels, layer.groups)


class _ImageConv:
    """In place of a layer's convolution: the same, with a fast gradient to images; for first derivatives alone.

    Copies of the layer have their own convolution.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.layer
        # PyTorch has no transforms, such as vmap, of a function that returns its argument
        wanted = input.dim() == 4 and input.requires_grad and not torch._C._are_functorch_transforms_active()
        if not wanted or not weight.is_floating_point() or weight.device.type != "cpu":
            out: Tensor = nn.Conv2d._conv_forward(layer, input, weight, bias)
            return out
        settings = ConvSettings(*map(pair, (layer.stride, layer.padding, layer.dilation)))  # type: ignore[arg-type]
        # the weights' gradient is that of PyTorch's own node, which is left out where nobody asks for it
        out = nn.Conv2d._conv_forward(layer, input.detach(), weight, bias)
        with_gradient: Tensor = _ImageGradient.apply(out, input, weight, settings)
        return with_gradient

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(nn.Conv2d._conv_forward, memo.get(id(self.layer), self.layer))


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Kernel sizes, strides and paddings as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _few_channels_on_cpu(weight: Tensor, groups: int) -> bool:
    outputs, inputs = weight.shape[:2]
    return weight.device.type == "cpu" and _few_channels(outputs, inputs, groups)


def _few_channels(outputs: int, inputs: int, groups: int) -> bool:
    return groups == 1 and 0 < inputs <= _CHANNELS and outputs >= _RATIO * inputs


def under_autocast(x: Tensor) -> Tensor:
    """Cast to the precision that autocast gives to PyTorch's own convolutions."""
    on = x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
    return x.to(torch.get_autocast_dtype(x.device.type)) if on else x


def _fold(A: Tensor, weight: Tensor, shape: torch.Size, settings: ConvSettings) -> Tensor:
    """The adjoint of a convolution: coefficients times the kernel, summed where these overlap."""
    # ``matmul`` would copy A
    patches = torch.bmm(weight.flatten(1).T.expand(len(A), -1, -1), A.flatten(2))
    return F.fold(
        patches, shape[1:], weight.shape[2:], settings.dilation, padding=settings.padding, stride=settings.stride
    )


def _weight_gradient(grad_out: Tensor, x: Tensor, weight: Tensor, settings: ConvSettings) -> Tensor:
    stride, padding, dilation, groups = settings
    _, grad, _ = torch.ops.aten.convolution_backward(
        grad_out, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (False, True, False)
    )
    return grad  # type: ignore[no-any-return]


class _FewChannelsConv(torch.autograd.Function):
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


class _FewChannelsAdjoint(torch.autograd.Function):
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


class _ImageGradient(torch.autograd.Function):
    """A convolution's output as it is; its gradient goes to the output, and to the input by :func:`_fold`."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, weight: Tensor, settings: ConvSettings) -> Tensor:
        ctx.settings, ctx.shape, ctx.dtype = settings, x.shape[1:], x.dtype
        ctx.save_for_backward(weight)
        ctx.mark_dirty(out)  # the result is no view of it: the next layer may change it in place
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return grad, _fold(grad, weight.to(grad.dtype), ctx.shape, ctx.settings).to(ctx.dtype), None, None
