"""Batch normalisation by the statistics of the global batch, on CPU and GPU (``trainer.sync_batchnorm``)."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust.bounds.clean_statistics import batch_statistics
from robust.errors import require


def check_equal_passes(module: nn.Module) -> None:
    """Check that every process makes the same number of passes through batch normalisation in training mode.

    Raises:
        SettingError: if an attack may stop early, since the other processes would then wait forever.
    """
    for attack in _attributes(module):
        stops = getattr(attack, "early_stop", False) is True and getattr(attack, "mode", "eval") != "eval"
        remedy = "with trainer.sync_batchnorm all processes must make the same passes; turn it off, or give mode eval"
        require(not stops, "early_stop of the attack", True, remedy)


def _attributes(module: nn.Module) -> Iterator[Any]:
    """Attributes of the module, and the entries of its dicts, lists and tuples."""
    for value in vars(module).values():
        yield from value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]


class SynchronisedStatistics(LayerSync):
    """Computes mean and variance of batch normalisation in training mode over the batches of all processes.

    Unlike torch's ``SyncBatchNorm``, it runs on CPU, does not change the layers' classes, by which bounds recognise
    them, and has second derivatives. All processes must make the same number of passes through the layers.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Let the layers of ``model`` compute statistics over all processes."""
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Let the layers of ``model`` compute statistics in each process again."""
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                vars(layer).pop("forward", None)
        return model


def statistics_of(layer: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) by which a layer in training mode normalises its input (B, C, ...)."""
    if "forward" in vars(layer) and _several_processes():
        return _statistics(x)[:2]
    return batch_statistics(layer, x)


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of values of each channel, over all processes."""
    others = [dim for dim in range(x.dim()) if dim != 1]
    wide = [1, -1, *[1] * (x.dim() - 2)]
    values = x if x.dtype == torch.float64 else x.float()
    count = _sum_over_ranks(values.new_tensor([values.numel() / values.shape[1]]))
    mean = _sum_over_ranks(values.sum(others)) / count
    centred = values - mean.view(wide)
    return mean, _sum_over_ranks(centred.square().sum(others)) / count, count  # E[x^2] - E[x]^2 would lose digits


def _forward(layer: _BatchNorm, x: Tensor) -> Tensor:
    """Torch's ``forward`` of batch normalisation with the statistics of all processes."""
    if not (layer.training and _several_processes()):
        output: Tensor = type(layer).forward(layer, x)
        return output
    layer._check_input_dim(x)  # type: ignore[no-untyped-call]
    mean, variance, count = _statistics(x)
    wide = [1, -1, *[1] * (x.dim() - 2)]
    if layer.track_running_stats and layer.running_mean is not None:
        _update_running_statistics(layer, mean.detach(), (variance * count / (count - 1)).detach())
    output = (x.to(mean.dtype) - mean.view(wide)) * torch.rsqrt(variance + layer.eps).view(wide)
    if layer.affine:
        output = output * layer.weight.view(wide) + layer.bias.view(wide)
    return output.to(x.dtype)


def _update_running_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as torch's batch normalisation does."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    rate = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), rate)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), rate)


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of their gradients, to any order."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _sum_over_ranks(gradients[0])


def _sum_over_ranks(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return total
