"""The affine layers of a feed-forward network, each with what interval and linear bound propagation need of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust.bounds.convolution import ConvSettings, adjoint, conv
from robust.networks.normalize import Normalize


class Affine(ABC):
    """An affine map f(h) = W h + b.

    Linear bounds are rows ``A`` of shape (B, S, *shape): S functions of the activations of each example.

    Attributes:
        name: of the module in its network, such as ``2`` or ``features.0``.
    """

    name: str = ""

    @abstractmethod
    def terms(self, shape: torch.Size) -> int:
        """Number of roundings on the way to an output, or to a coefficient of a row on the input, at most.

        Args:
            shape: input shape of one example.
        """

    @abstractmethod
    def center(self, center: Tensor) -> Tensor:
        """Midpoint of the output interval, W c + b: (B, *in) -> (B, *out)."""

    @abstractmethod
    def radius(self, radius: Tensor) -> Tensor:
        """Half width of the output interval, |W| r: (B, *in) -> (B, *out)."""

    @abstractmethod
    def offset(self, shape: torch.Size) -> Tensor | float:
        """Sum of the absolute terms that b is summed from; broadcasts to (B, *out).

        Args:
            shape: input shape of one example.
        """

    @abstractmethod
    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """Rows on the output as rows and constants on the input: A f(h) = (A W) h + A b.

        Args:
            A: (B, S, *out).
            shape: input shape of one example.

        Returns:
            A W of shape (B, S, *in), and A b of shape (B, S).
        """


def pair(value: int | tuple[int, ...] | str) -> tuple[int, int]:
    """Kernel sizes, strides and paddings as (height, width)."""
    assert not isinstance(value, str)
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class LinearLayer(Affine):
    """``nn.Linear`` on the last axis of activations (B, ..., in)."""

    def __init__(self, module: nn.Linear, dtype: torch.dtype) -> None:
        self.weight = module.weight.to(dtype)
        self.bias = None if module.bias is None else module.bias.to(dtype)

    def terms(self, shape: torch.Size) -> int:
        """A product and a sum for each input, or for each output."""
        return max(self.weight.shape) + 1

    def center(self, center: Tensor) -> Tensor:
        """W c + b."""
        return F.linear(center, self.weight, self.bias)

    def radius(self, radius: Tensor) -> Tensor:
        """|W| r."""
        return F.linear(radius, self.weight.abs())

    def offset(self, shape: torch.Size) -> Tensor | float:
        """|b|, (out,)."""
        return 0.0 if self.bias is None else self.bias.abs()

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """A W and A b."""
        if self.bias is None:
            return A @ self.weight, 0.0
        constant = A @ self.bias
        return A @ self.weight, constant if constant.dim() == 2 else constant.flatten(2).sum(-1)


class ConvLayer(Affine):
    """``nn.Conv2d`` with zero padding."""

    def __init__(self, module: nn.Conv2d, dtype: torch.dtype) -> None:
        self.weight = module.weight.to(dtype)
        self.bias = None if module.bias is None else module.bias.to(dtype)
        sides = pair(module.stride), pair(module.padding), pair(module.dilation)
        self.settings = ConvSettings(*sides, groups=module.groups)

    def terms(self, shape: torch.Size) -> int:
        """A product and a sum for each weight of an output channel, or of an input channel."""
        outputs, inputs, height, width = self.weight.shape
        return max(outputs // self.settings.groups, inputs) * height * width + 1

    def center(self, center: Tensor) -> Tensor:
        """W c + b."""
        return conv(center, self.weight, self.bias, self.settings)

    def radius(self, radius: Tensor) -> Tensor:
        """|W| r."""
        return conv(radius, self.weight.abs(), None, self.settings)

    def offset(self, shape: torch.Size) -> Tensor | float:
        """|b|, (out, 1, 1)."""
        return 0.0 if self.bias is None else self.bias.abs().view(-1, 1, 1)

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """A W by the adjoint convolution, and A b."""
        beta = 0.0 if self.bias is None else A.sum((-2, -1)) @ self.bias
        rows = adjoint(A.flatten(0, 1), self.weight, shape, self.settings)
        return rows.view(*A.shape[:2], *shape), beta


class ScaleLayer(Affine):
    """Per-channel ``scale * h + shift``: normalisation, and batch-norm with its evaluation statistics.

    Args:
        scale: (C,).
        shift: (C,).
        shift_size: sum of the absolute terms that ``shift`` was summed from, (C,).
    """

    def __init__(self, scale: Tensor, shift: Tensor, shift_size: Tensor) -> None:
        self.scale, self.shift, self.shift_size = scale, shift, shift_size

    @classmethod
    def of_normalize(cls, module: Normalize, dtype: torch.dtype) -> ScaleLayer:
        """The layer of :class:`robust.networks.Normalize`."""
        mean, std = module.mean.flatten().to(dtype), module.std.flatten().to(dtype)
        return cls(1 / std, -mean / std, (mean / std).abs())

    @classmethod
    def of_batch_norm(cls, module: nn.Module, dtype: torch.dtype) -> ScaleLayer:
        """The layer of a batch-norm module, with its running statistics whatever the module's mode is."""
        assert isinstance(module, _BatchNorm)
        assert module.running_mean is not None
        assert module.running_var is not None
        # batch-norm moves its statistics in place, unseen by autograd: a later backward pass must not read the new ones
        mean, variance = module.running_mean.to(dtype, copy=True), module.running_var.to(dtype, copy=True)
        scale = (variance + module.eps).rsqrt()
        if module.affine:
            scale = scale * module.weight.to(dtype)
        shift = -mean * scale
        size = shift.detach().abs()
        if module.affine:
            shift, size = shift + module.bias.to(dtype), size + module.bias.detach().abs()
        return cls(scale, shift, size)

    def terms(self, shape: torch.Size) -> int:
        """Scale and shift themselves are rounded several times: square root, division, products, sums."""
        return 10

    def center(self, center: Tensor) -> Tensor:
        """W c + b."""
        return center * _by_channel(self.scale, center.dim() - 2) + _by_channel(self.shift, center.dim() - 2)

    def radius(self, radius: Tensor) -> Tensor:
        """|W| r."""
        return radius * _by_channel(self.scale.abs(), radius.dim() - 2)

    def offset(self, shape: torch.Size) -> Tensor | float:
        """The terms of mean * scale and of the bias, (C, ...)."""
        return _by_channel(self.shift_size, len(shape) - 1)

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """A W and A b."""
        scale, shift = _by_channel(self.scale, A.dim() - 3), _by_channel(self.shift, A.dim() - 3)
        return A * scale, (A * shift).flatten(2).sum(-1)


def _by_channel(values: Tensor, sides: int) -> Tensor:
    """Values (C,) in a shape that broadcasts to (..., C, and as many sides)."""
    return values.view(-1, *[1] * sides)


class AveragePoolLayer(Affine):
    """``nn.AvgPool2d``, and ``nn.AdaptiveAvgPool2d`` to one value."""

    def __init__(self, module: nn.AvgPool2d | nn.AdaptiveAvgPool2d) -> None:
        self.module = module

    def _kernel(self, shape: torch.Size) -> tuple[int, int]:
        return pair(self.module.kernel_size if isinstance(self.module, nn.AvgPool2d) else shape[1:])

    def terms(self, shape: torch.Size) -> int:
        """A sum for each pixel, and the division."""
        return math.prod(self._kernel(shape)) + 2

    def center(self, center: Tensor) -> Tensor:
        """W c; without the module's hooks, which may do anything to an interval."""
        m = self.module
        if isinstance(m, nn.AvgPool2d):
            return F.avg_pool2d(
                center, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
            )
        return F.adaptive_avg_pool2d(center, m.output_size)

    def radius(self, radius: Tensor) -> Tensor:
        """|W| r, where W is not negative."""
        return self.center(radius)

    def offset(self, shape: torch.Size) -> Tensor | float:
        """There is no b."""
        return 0.0

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """A W by the adjoint of a convolution of each channel, and 0."""
        m, kernel, settings = self.module, self._kernel(shape), ConvSettings((1, 1), (0, 0), (1, 1))
        if isinstance(m, nn.AvgPool2d):
            settings = ConvSettings(pair(m.stride), pair(m.padding), (1, 1))
        weight = A.new_full((1, 1, *kernel), 1 / (kernel[0] * kernel[1]))
        rows = adjoint(A.flatten(0, 2)[:, None], weight, torch.Size((1, *shape[1:])), settings)
        return rows.view(*A.shape[:3], *shape[1:]), 0.0


class FlattenLayer(Affine):
    """``nn.Flatten`` of everything but the batch."""

    def terms(self, shape: torch.Size) -> int:
        """Nothing is rounded."""
        return 0

    def center(self, center: Tensor) -> Tensor:
        """The same numbers, (B, n)."""
        return center.flatten(1)

    def radius(self, radius: Tensor) -> Tensor:
        """The same numbers, (B, n)."""
        return radius.flatten(1)

    def offset(self, shape: torch.Size) -> Tensor | float:
        """There is no b."""
        return 0.0

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """The same rows, (B, S, *shape)."""
        return A.reshape(*A.shape[:2], *shape), 0.0


class ReLULayer:
    """Marks the place of an ``nn.ReLU``; ``name`` is the module's."""

    name: str = ""


Layer = Affine | ReLULayer
