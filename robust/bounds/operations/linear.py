"""Affine operations with weights: linear layers, convolutions, and scales of single activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from robust.bounds.operations.base import Affine, fit
from robust.bounds.operations.registry import Operand, UnboundedError, register
from robust.convolution import ConvSettings, adjoint, conv, pair, under_autocast
from robust.threat_models import Norm

PLAIN = ConvSettings((1, 1), (0, 0), (1, 1))
_ROWS = 64  # of a weight, whose signs are held at a time


class _AbsoluteLinear(torch.autograd.Function):
    """|W| r without a copy of the weights for the backward pass: the weights of wide layers are most of the memory."""

    @staticmethod
    def forward(ctx: Any, radius: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(radius, weight)
        return F.linear(radius, weight.abs())

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        radius, weight = ctx.saved_tensors
        grad_radius = grad @ weight.abs() if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_radius, None
        grad_weight = grad.flatten(0, -2).T @ radius.flatten(0, -2)
        for rows, signs in zip(grad_weight.split(_ROWS), weight.split(_ROWS), strict=True):
            rows.mul_(signs.sgn())
        return grad_radius, grad_weight


class Linear(Affine):
    """W h + b on the last axis of activations (B, ..., in).

    >>> Linear(torch.tensor([[1.0, -2.0]]), None).radius(torch.tensor([[0.5, 0.25]]))
    tensor([[1.]])

    Args:
        weight: (out, in).
        bias: (out,), or none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def terms(self, *shapes: torch.Size) -> int:
        """A product and a sum for each input, or for each output."""
        return max(self.weight.shape) + 1

    def center(self, *centers: Tensor) -> Tensor:
        """W c + b."""
        return F.linear(centers[0], self.weight, self.bias)

    def radius(self, *radii: Tensor) -> Tensor:
        """|W| r."""
        out: Tensor = _AbsoluteLinear.apply(under_autocast(radii[0]), under_autocast(self.weight))
        return out

    def row_norms(self, scale: Tensor, norm: Norm) -> Tensor | None:
        """The norms, (1, ..., out)."""
        if norm == "l1":
            return (self.weight.abs() * scale[..., None, :]).amax(-1)
        return _l2_of_rows(self.weight, scale, F.linear)

    def offset(self) -> Tensor | float:
        """|b|, (out,)."""
        return 0.0 if self.bias is None else self.bias.abs()

    def rows(self, A: Tensor, *shapes: torch.Size) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """A W and A b."""
        if self.bias is None:
            return (A @ self.weight,), 0.0
        constant = A @ self.bias
        return (A @ self.weight,), constant if constant.dim() == 2 else constant.flatten(2).sum(-1)


class Convolution(Affine):
    """A convolution of (B, C, H, W) with zero padding.

    >>> Convolution(torch.tensor([1.0, -2.0]).view(1, 1, 1, 2), None).radius(torch.tensor([[[[0.5, 0.25]]]]))
    tensor([[[[1.]]]])

    Args:
        weight: (O, C / groups, kh, kw).
        bias: (O,), or none.
        settings: stride, padding, dilation, groups.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, settings: ConvSettings = PLAIN) -> None:
        self.weight, self.bias, self.settings = weight, bias, settings

    def terms(self, *shapes: torch.Size) -> int:
        """A product and a sum for each weight of an output channel, or of an input channel."""
        outputs, inputs, height, width = self.weight.shape
        return max(outputs // self.settings.groups, inputs) * height * width + 1

    def center(self, *centers: Tensor) -> Tensor:
        """W c + b."""
        return conv(centers[0], self.weight, self.bias, self.settings)

    def radius(self, *radii: Tensor) -> Tensor:
        """|W| r."""
        return conv(radii[0], self.weight.abs(), None, self.settings)

    def row_norms(self, scale: Tensor, norm: Norm) -> Tensor | None:
        """The norms, (1, O, H, W): a kernel at the border has fewer weights."""
        stride, padding, dilation, groups = self.settings
        if norm == "l2":
            return _l2_of_rows(self.weight, scale, lambda x, weight: conv(x, weight, None, self.settings))
        windows = F.unfold(scale, self.weight.shape[2:], dilation, padding, stride)
        kernels = self.weight.abs().reshape(groups, -1, self.weight[0].numel(), 1)
        largest = (kernels * windows.view(groups, 1, kernels.shape[2], -1)).amax(2)
        return largest.reshape(conv(scale, self.weight, None, self.settings).shape)

    def offset(self) -> Tensor | float:
        """|b|, (out, 1, 1)."""
        return 0.0 if self.bias is None else self.bias.abs().view(-1, 1, 1)

    def rows(self, A: Tensor, *shapes: torch.Size) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """A W by the adjoint convolution, and A b."""
        beta = 0.0 if self.bias is None else A.sum((-2, -1)) @ self.bias
        rows = adjoint(A.flatten(0, 1), self.weight, shapes[0], self.settings)
        return (rows.view(*A.shape[:2], *shapes[0]),), beta


class PaddedConvolution(Convolution):
    """A convolution whose zero padding differs between two opposite sides.

    Args:
        weight: weight of the convolution; see :class:`Convolution`.
        bias: bias of the convolution; see there.
        settings: settings of the convolution, without padding; see there.
        padding: left, right, top, bottom.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, settings: ConvSettings, padding: tuple[int, int, int, int]
    ) -> None:
        super().__init__(weight, bias, settings)
        self.padding = padding

    def center(self, *centers: Tensor) -> Tensor:
        """W c + b."""
        return super().center(F.pad(centers[0], self.padding))

    def radius(self, *radii: Tensor) -> Tensor:
        """|W| r."""
        return super().radius(F.pad(radii[0], self.padding))

    def row_norms(self, scale: Tensor, norm: Norm) -> Tensor | None:
        """The norms, (1, O, H, W)."""
        return super().row_norms(F.pad(scale, self.padding), norm)

    def rows(self, A: Tensor, *shapes: torch.Size) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """A W, without the coefficients of the padding."""
        (channels, height, width), (left, right, top, bottom) = shapes[0], self.padding
        (rows,), beta = super().rows(A, torch.Size((channels, height + top + bottom, width + left + right)))
        return (rows[..., top : top + height, left : left + width],), beta


class Scale(Affine):
    """``scale * h + shift`` of each activation; both broadcast with h.

    >>> Scale(torch.tensor(-2.0), torch.tensor(1.0)).center(torch.tensor([[3.0]]))
    tensor([[-5.]])

    Args:
        scale: factor, with at most as many axes as an example's activations; None for 1.
        shift: summand, with at most as many axes; None for 0.
        shift_size: sum of the absolute terms that ``shift`` was summed from; its absolute value by default.
        output: shape of an example's results; that of the input by default.
    """

    def __init__(
        self,
        scale: Tensor | None,
        shift: Tensor | None,
        shift_size: Tensor | None = None,
        output: torch.Size | None = None,
    ) -> None:
        self.scale, self.shift, self.output = scale, shift, output
        self.shift_size = shift.detach().abs() if shift_size is None and shift is not None else shift_size

    @property
    def diagonal(self) -> bool:
        """Unless activations are spread."""
        return self.output is None

    def terms(self, *shapes: torch.Size) -> int:
        """Scale and shift themselves are rounded several times; a row's coefficients are summed where h is spread."""
        spread = 1 if self.output is None else self.output.numel() // max(shapes[0].numel(), 1)
        return 10 + spread

    def center(self, *centers: Tensor) -> Tensor:
        """W c + b."""
        scaled = centers[0] if self.scale is None else centers[0] * self.scale
        return self._spread(scaled if self.shift is None else scaled + self.shift)

    def radius(self, *radii: Tensor) -> Tensor:
        """|W| r."""
        return self._spread(radii[0] if self.scale is None else radii[0] * self.scale.abs())

    def _spread(self, values: Tensor) -> Tensor:
        return values if self.output is None else values.expand(-1, *self.output)

    def offset(self) -> Tensor | float:
        """The absolute terms of the shift."""
        return 0.0 if self.shift_size is None else self.shift_size

    def rows(self, A: Tensor, *shapes: torch.Size) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """A W and A b."""
        constant = 0.0 if self.shift is None else (A * self.shift).flatten(2).sum(-1)
        return (fit(A if self.scale is None else A * self.scale, shapes[0]),), constant


@register("linear")
def _linear(x: Operand, weight: Tensor, bias: Tensor | None = None) -> Linear:
    _require_constant(weight, bias)
    return Linear(weight, bias)


@register("conv2d")
def _conv2d(
    x: Operand,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Convolution:
    _require_constant(weight, bias)
    settings = ConvSettings(pair(stride), (0, 0), pair(dilation), groups)
    if padding != "same":
        return Convolution(weight, bias, settings._replace(padding=pair(0 if padding == "valid" else padding)))
    height, width = (d * (size - 1) for d, size in zip(settings.dilation, weight.shape[2:], strict=True))
    if height % 2 == 0 == width % 2:
        return Convolution(weight, bias, settings._replace(padding=(height // 2, width // 2)))
    sides = (width // 2, width - width // 2, height // 2, height - height // 2)
    return PaddedConvolution(weight, bias, settings, sides)


@register("batch_norm")
def _batch_norm(
    x: Operand,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Scale:
    if training or running_mean is None or running_var is None:
        raise UnboundedError("an image's logits depend on the others in its batch; set track_running_stats to true")
    # batch-norm moves its statistics in place, unseen by autograd: a later backward pass must not read the new ones
    scale = (running_var.clone() + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean.clone() * scale
    size = shift.detach().abs()
    if bias is not None:
        shift, size = shift + bias, size + bias.detach().abs()
    sides = (-1, *[1] * (len(x.shape) - 1))
    return Scale(scale.view(sides), shift.view(sides), size.view(sides))


def _l2_of_rows(weight: Tensor, scale: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The l2 norms of the rows of a linear map, ``product`` of an input and the weights, after a scale of its input."""
    tiny = torch.finfo(weight.dtype).tiny  # squares underflow; the root of what is raised to this is no smaller
    largest = weight.detach().abs().amax().clamp_min(tiny)
    return largest * product(scale.square(), (weight / largest).square()).clamp_min(tiny).sqrt()


def _require_constant(*weights: Any) -> None:
    if any(isinstance(weight, Operand) for weight in weights):
        raise UnboundedError("its weights depend on the image")
