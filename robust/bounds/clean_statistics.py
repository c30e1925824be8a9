"""Batch normalisation in certified training: bounds by the statistics of the clean images of the batch.

The bounds of an image must not depend on the perturbations of others, so that a layer is affine with fixed statistics.
Running statistics are far from the batch's while weights move quickly; those of a box would have bounds of their own.
Source: Shi et al. 2021, Sec. 3.2 (full batch normalisation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust.errors import UnsupportedLayerError

Statistics = dict[_BatchNorm, tuple[Tensor, Tensor]]


def batch_statistics(layer: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of what enters a layer, (B, C, ...), by which it normalises in training mode."""
    others = [dim for dim in range(x.dim()) if dim != 1]
    x = x if x.dtype == torch.float64 else x.float()  # autocast makes it less than the layer's own statistics
    return x.mean(others), x.var(others, unbiased=False)


def normalised_by_batch(network: nn.Module) -> list[_BatchNorm]:
    """The layers that a pass now normalises by its batch, and that keep running statistics."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    return [layer for layer in layers if layer.training and layer.running_mean is not None]


@contextmanager
def clean_statistics(
    network: nn.Module, statistics_of: Callable[[_BatchNorm, Tensor], tuple[Tensor, Tensor]] = batch_statistics
) -> Iterator[Statistics]:
    """Collect the statistics of each batch-norm layer in a pass inside, with their gradients.

    The pass moves the running statistics, as any pass in training mode does.

    Args:
        network: network in training mode; layers in evaluation mode have no statistics.
        statistics_of: function that gives mean and variance for a layer and its input.

    Raises:
        UnsupportedLayerError: in the pass, if it goes through a layer twice.
    """
    statistics: Statistics = {}
    names = {module: name for name, module in network.named_modules()}

    def collect(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        if layer in statistics:
            remedy = "a pass goes through it twice, each time with other statistics; give each place a layer of its own"
            raise UnsupportedLayerError(f"network layer '{names[layer]}'", str(layer), remedy)
        statistics[layer] = statistics_of(layer, inputs[0])

    handles = [layer.register_forward_pre_hook(collect) for layer in normalised_by_batch(network)]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def in_place_of_running(statistics: Statistics) -> Iterator[None]:
    """Let verifiers use these statistics instead of the running ones, which are back afterwards.

    ``FeedForwardVerifier`` has gradients to them, ``LirpaVerifier`` takes them as constants.

    >>> network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    >>> with clean_statistics(network) as statistics:
    ...     _ = network(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    >>> with in_place_of_running(statistics):
    ...     network[0].running_mean, network[0].running_var
    (tensor([0.5000]), tensor([0.2500]))
    >>> network[0].running_mean
    tensor([0.0500])
    """
    running = {layer: (layer.running_mean, layer.running_var) for layer in statistics}
    try:
        for layer, (mean, variance) in statistics.items():
            layer.running_mean, layer.running_var = mean, variance
        yield
    finally:
        for layer, before in running.items():
            layer.running_mean, layer.running_var = before


@contextmanager
def without_gradient(network: nn.Module) -> Iterator[None]:
    """Let passes take statistics of :func:`in_place_of_running` as constants, as PyTorch needs them, and move none.

    >>> network = nn.BatchNorm2d(1).eval()
    >>> network.running_mean.requires_grad_().requires_grad
    True
    >>> with without_gradient(network):
    ...     network.running_mean.requires_grad
    False
    """
    constant: Statistics = {}
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            constant[layer] = layer.running_mean.detach().clone(), layer.running_var.detach().clone()
    with in_place_of_running(constant):
        yield
