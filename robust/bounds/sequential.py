"""The layers of an ``nn.Sequential``, as its forward pass calls them now."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod

from robust.bounds.layers import (
    AveragePoolLayer,
    ConvLayer,
    FlattenLayer,
    Layer,
    LinearLayer,
    ReLULayer,
    ScaleLayer,
    pair,
)
from robust.errors import UnsupportedLayerError
from robust.networks.normalize import Normalize


def _layer(module: nn.Module, dtype: torch.dtype) -> Layer | None:
    """The bound of one module in that precision, or None where there is none."""
    kind = type_before_parametrizations(module)
    if kind is nn.ReLU:
        return ReLULayer()
    if kind is nn.Linear:
        return LinearLayer(module, dtype)  # type: ignore[arg-type]
    if isinstance(module, nn.Conv2d) and kind is nn.Conv2d:
        zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return ConvLayer(module, dtype) if zeros else None
    if isinstance(module, nn.Flatten) and kind is nn.Flatten:
        return FlattenLayer() if module.start_dim == 1 and module.end_dim == -1 else None
    if isinstance(module, nn.AvgPool2d) and kind is nn.AvgPool2d:
        counted = module.count_include_pad or pair(module.padding) == (0, 0)
        plain = not module.ceil_mode and module.divisor_override is None and counted
        return AveragePoolLayer(module) if plain else None
    if isinstance(module, nn.AdaptiveAvgPool2d) and kind is nn.AdaptiveAvgPool2d:
        return AveragePoolLayer(module) if module.output_size in (1, (1, 1)) else None
    if isinstance(module, Normalize) and kind is Normalize:
        return ScaleLayer.of_normalize(module, dtype)
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm) and module.track_running_stats:
        return ScaleLayer.of_batch_norm(module, dtype)  # type: ignore[arg-type]
    return None


def sequence(network: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """The modules that a (nested) ``nn.Sequential`` calls, in their order, by name; one row for each call."""
    if isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward:
        parts = [sequence(child, f"{name}.{key}".lstrip(".")) for key, child in network._modules.items()]
        return [call for part in parts for call in part]
    return [] if type(network) is nn.Identity else [(name, network)]


def feed_forward(network: nn.Module, dtype: torch.dtype) -> list[Layer]:
    """The layers of a (nested) ``nn.Sequential`` in their order, one for each time that a module is used.

    Pruned and parametrized modules (``torch.nn.utils``) are taken as they are in a forward pass now.

    Raises:
        UnsupportedLayerError: naming the layer that has no bound here.
    """
    return [_named_layer(name, module, dtype) for name, module in sequence(network)]


def _named_layer(name: str, module: nn.Module, dtype: torch.dtype) -> Layer:
    _recompute_weights(module, name)
    layer = _layer(module, dtype)
    if layer is None:
        raise UnsupportedLayerError(
            f"network layer '{name}'",
            str(module).split("\n")[0],
            "FeedForwardVerifier has no bound for it; set the verifier to robust.bounds.LirpaVerifier",
        )
    layer.name = name
    return layer


def _recompute_weights(module: nn.Module, name: str) -> None:
    """Bring a pruned module's weights up to date, as its forward pass would.

    Raises:
        UnsupportedLayerError: if some other hook replaces a parameter: it would be that of the last forward pass.
    """
    pruning = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, BasePruningMethod)]
    for hook in pruning:
        hook(module, None)
    pruned = {hook._tensor_name for hook in pruning}
    replaced = [key for key in ("weight", "bias") if isinstance(vars(module).get(key), Tensor) and key not in pruned]
    if replaced:
        remedy = "a hook computes it in each forward pass; use torch.nn.utils.parametrizations, which bounds follow"
        raise UnsupportedLayerError(f"network layer '{name}'", f"{type(module).__name__}.{replaced[0]}", remedy)
