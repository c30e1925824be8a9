"""The affine layers of a feed-forward network, each with what interval and linear bound propagation need of it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.bounds.convolution import ConvSettings, adjoint, conv
from robust.errors import UnsupportedLayerError
from robust.networks.normalize import Normalize


class Affine(ABC):
    """An affine map f(h) = W h + b.

    Linear bounds are rows ``A`` of shape (B, S, *shape): S functions of the activations of each example.
    """

    @abstractmethod
    def center(self, center: Tensor) -> Tensor:
        """Midpoint of the output interval, W c + b: (B, *in) -> (B, *out)."""

    @abstractmethod
    def radius(self, radius: Tensor) -> Tensor:
        """Half width of the output interval, |W| r: (B, *in) -> (B, *out)."""

    @abstractmethod
    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """Rows on the output as rows and constants on the input: A f(h) = (A W) h + A b.

        Args:
            A: (B, S, *out).
            shape: input shape of one example.

        Returns:
            A W of shape (B, S, *in), and A b of shape (B, S).
        """


def _pair(value: int | tuple[int, ...] | str) -> tuple[int, int]:
    """Kernel sizes, strides and paddings as (height, width)."""
    assert not isinstance(value, str)
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class LinearLayer(Affine):
    """``nn.Linear`` on flat activations."""

    def __init__(self, module: nn.Linear) -> None:
        self.weight, self.bias = module.weight, module.bias

    def center(self, center: Tensor) -> Tensor:
        """See :meth:`Affine.center`."""
        return F.linear(center, self.weight, self.bias)

    def radius(self, radius: Tensor) -> Tensor:
        """See :meth:`Affine.radius`."""
        return F.linear(radius, self.weight.abs())

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """See :meth:`Affine.backward`."""
        return A @ self.weight, 0.0 if self.bias is None else A @ self.bias


class ConvLayer(Affine):
    """``nn.Conv2d`` with zero padding."""

    def __init__(self, module: nn.Conv2d) -> None:
        self.weight, self.bias = module.weight, module.bias
        sides = _pair(module.stride), _pair(module.padding), _pair(module.dilation)
        self.settings = ConvSettings(*sides, groups=module.groups)

    def center(self, center: Tensor) -> Tensor:
        """See :meth:`Affine.center`."""
        return conv(center, self.weight, self.bias, self.settings)

    def radius(self, radius: Tensor) -> Tensor:
        """See :meth:`Affine.radius`."""
        return conv(radius, self.weight.abs(), None, self.settings)

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """See :meth:`Affine.backward`."""
        beta = 0.0 if self.bias is None else A.sum((-2, -1)) @ self.bias
        rows = adjoint(A.flatten(0, 1), self.weight, shape, self.settings)
        return rows.view(*A.shape[:2], *shape), beta


class ScaleLayer(Affine):
    """Per-channel ``scale * h + shift``: normalisation, and batch-norm with its evaluation statistics."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale, shift

    @classmethod
    def of_normalize(cls, module: Normalize) -> ScaleLayer:
        """The layer of :class:`robust.networks.Normalize`."""
        return cls(1 / module.std, -module.mean / module.std)

    @classmethod
    def of_batch_norm(cls, module: nn.BatchNorm1d | nn.BatchNorm2d) -> ScaleLayer:
        """The layer of a batch-norm module, with its running statistics whatever the module's mode is."""
        assert module.running_mean is not None
        assert module.running_var is not None
        # batch-norm moves its statistics in place, unseen by autograd: a later backward pass must not read the new ones
        mean, variance = module.running_mean.clone(), module.running_var.clone()
        scale = (variance + module.eps).rsqrt()
        if module.affine:
            scale = scale * module.weight
        shift = -mean * scale
        if module.affine:
            shift = shift + module.bias
        shape = (-1, 1, 1) if isinstance(module, nn.BatchNorm2d) else (-1,)
        return cls(scale.view(shape), shift.view(shape))

    def center(self, center: Tensor) -> Tensor:
        """See :meth:`Affine.center`."""
        return center * self.scale + self.shift

    def radius(self, radius: Tensor) -> Tensor:
        """See :meth:`Affine.radius`."""
        return radius * self.scale.abs()

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """See :meth:`Affine.backward`."""
        return A * self.scale, (A * self.shift).flatten(2).sum(-1)


class AveragePoolLayer(Affine):
    """``nn.AvgPool2d``, and ``nn.AdaptiveAvgPool2d`` to one value."""

    def __init__(self, module: nn.AvgPool2d | nn.AdaptiveAvgPool2d) -> None:
        self.module = module

    def center(self, center: Tensor) -> Tensor:
        """See :meth:`Affine.center`."""
        pooled: Tensor = self.module(center)
        return pooled

    def radius(self, radius: Tensor) -> Tensor:
        """See :meth:`Affine.radius`."""
        return self.center(radius)

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """See :meth:`Affine.backward`."""
        m = self.module
        if isinstance(m, nn.AvgPool2d):
            kernel, settings = _pair(m.kernel_size), ConvSettings(_pair(m.stride), _pair(m.padding), (1, 1))
        else:
            kernel, settings = _pair(shape[1:]), ConvSettings((1, 1), (0, 0), (1, 1))
        weight = A.new_full((1, 1, *kernel), 1 / (kernel[0] * kernel[1]))
        rows = adjoint(A.flatten(0, 2)[:, None], weight, torch.Size((1, *shape[1:])), settings)
        return rows.view(*A.shape[:3], *shape[1:]), 0.0


class FlattenLayer(Affine):
    """``nn.Flatten`` of everything but the batch."""

    def center(self, center: Tensor) -> Tensor:
        """See :meth:`Affine.center`."""
        return center.flatten(1)

    def radius(self, radius: Tensor) -> Tensor:
        """See :meth:`Affine.radius`."""
        return radius.flatten(1)

    def backward(self, A: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | float]:
        """See :meth:`Affine.backward`."""
        return A.reshape(*A.shape[:2], *shape), 0.0


class ReLULayer:
    """Marks the place of an ``nn.ReLU``."""


Layer = Affine | ReLULayer


def _layer(module: nn.Module) -> Layer | None:
    """The bound of one module, or None where there is none."""
    if type(module) is nn.ReLU:
        return ReLULayer()
    if type(module) is nn.Linear:
        return LinearLayer(module)
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return ConvLayer(module)
    if type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        return FlattenLayer()
    if type(module) is nn.AvgPool2d and not module.ceil_mode and module.divisor_override is None:
        return AveragePoolLayer(module) if module.count_include_pad or _pair(module.padding) == (0, 0) else None
    if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        return AveragePoolLayer(module)
    if type(module) is Normalize:
        return ScaleLayer.of_normalize(module)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.track_running_stats:
        return ScaleLayer.of_batch_norm(module)
    return None


def feed_forward(network: nn.Module, name: str = "") -> list[Layer]:
    """The layers of a (nested) ``nn.Sequential`` in their order.

    Raises:
        UnsupportedLayerError: naming the layer that has no bound here.
    """
    if isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward:
        parts = [feed_forward(child, f"{name}.{key}".lstrip(".")) for key, child in network.named_children()]
        return [layer for part in parts for layer in part]
    if type(network) is nn.Identity:
        return []
    layer = _layer(network)
    if layer is None:
        raise UnsupportedLayerError(
            f"model.classifier layer '{name}'",
            str(network).split("\n")[0],
            "FeedForwardVerifier has no bound for it; set the verifier to robust.bounds.LirpaVerifier",
        )
    return [layer]
