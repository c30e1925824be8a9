"""Weights with which intervals keep their width from layer to layer."""

from __future__ import annotations

import math

import torch
from torch import nn

from robust.errors import SettingError


@torch.no_grad()
def initialise_for_intervals(network: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers, all but the last, from N(0, 2 pi / n^2), n the fan-in.

    Half of the width of a layer's input passes its ReLU, and the mean of ``|w|`` is then 2 / n: the width of an
    interval stays the same in expectation, whereas usual weights multiply it in every layer. Biases, normalisation
    layers and the last layer stay as they are. Source: Shi et al. 2021, Sec. 3.2; their code leaves the last layer
    out. (It also halves weights behind a sum of two branches, which this function does not.)

    >>> network = nn.Sequential(nn.Conv2d(100, 100, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 10))
    >>> initialise_for_intervals(network)
    >>> round(900 * network[0].weight.detach().abs().mean().item(), 1)
    2.0

    Args:
        network: network of convolutions and linear layers.

    Raises:
        SettingError: if it has fewer than two of them, or one that has no weights yet or computes them.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))]
    if len(layers) < 2:
        raise SettingError("network", type(network).__name__, "give one of two convolutions or linear layers at least")
    for layer in layers[:-1]:
        weight = layer._parameters.get("weight")
        if weight is None or isinstance(weight, nn.parameter.UninitializedParameter):
            raise SettingError("network", str(layer), "initialise it before its weights are pruned or parametrized")
        weight.normal_(std=math.sqrt(2 * math.pi) / weight[0].numel())
