"""Noise on the weights of any network: of learned strength (PNI, He et al. 2019), or a learned distribution of each.

The latter is that of Adv-BNN (Liu et al. 2019). Each pass draws one set of weights for its whole batch.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from robust.errors import require
from robust.networks.noise import NoiseSource

Granularity = Literal["layer", "channel", "element"]


class WeightNoise(NoiseSource):
    """w + alpha * std(w) * n with n ~ N(0, 1) and learned alpha (Parametric Noise Injection).

    The gradient does not go through std(w), taken over all entries of the weight.

    Args:
        weight: weight to which noise is added, (C_out, ...).
        granularity: one alpha for the whole weight, for each output channel, or for each entry.
        initial_strength: initial value of every alpha.

    Raises:
        SettingError: if there is no such granularity, or the weight has one entry.
    """

    def __init__(self, weight: Tensor, granularity: Granularity = "layer", initial_strength: float = 0.25) -> None:
        super().__init__()
        choices = get_args(Granularity)
        require(granularity in choices, "granularity", granularity, f"give one of {', '.join(choices)}")
        remedy = "the std of one number, by which its noise is scaled, is not defined; give more channels"
        require(weight.numel() > 1, "network", f"a layer whose weight has shape {tuple(weight.shape)}", remedy)
        ones = [1] * weight.dim()
        shapes = {"layer": ones, "channel": [len(weight), *ones[1:]], "element": list(weight.shape)}
        self.alpha = nn.Parameter(torch.full(shapes[granularity], initial_strength))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its noise."""
        if not self.enabled:
            return weight
        return torch.addcmul(weight, self.alpha * weight.detach().std(), self.draw(weight, shared=True))


class GaussianWeight(NoiseSource):
    """mu + sigma * n with n ~ N(0, 1): a weight drawn from its variational distribution (Adv-BNN).

    Args:
        weight: mu, whose shape the learned log(sigma) has.
        initial_std: sigma of every entry, positive. The authors' code starts at exp(0.08) = 1.083.

    Raises:
        SettingError: if ``initial_std`` is not positive.
    """

    def __init__(self, weight: Tensor, initial_std: float = 0.08) -> None:
        super().__init__()
        require(initial_std > 0, "initial_std", initial_std, "give a positive std")
        self.log_sigma = nn.Parameter(torch.full_like(weight, math.log(initial_std)))

    def forward(self, mu: Tensor) -> Tensor:
        """One draw of the weight; mu without noise."""
        return torch.addcmul(mu, self.log_sigma.exp(), self.draw(mu, shared=True)) if self.enabled else mu

    def divergence(self, mu: Tensor, prior_std: float) -> Tensor:
        """KL(N(mu, sigma^2) || N(0, prior_std^2)), summed over all entries: a scalar (closed form)."""
        ratio = self.log_sigma - math.log(prior_std)
        return (0.5 * (2 * ratio).exp() + 0.5 * (mu / prior_std).square() - ratio - 0.5).sum()


class NoisyWeights(nn.Module):
    """Any network with :class:`WeightNoise` on the weight of every convolution and linear layer.

    Args:
        network: network from images (B, C, H, W) to logits (B, K); it is changed.
        granularity: see :class:`WeightNoise`.
        initial_strength: see :class:`WeightNoise`.

    Raises:
        SettingError: if there is no such granularity, or the network has no such layer.
    """

    def __init__(self, network: nn.Module, granularity: Granularity = "layer", initial_strength: float = 0.25) -> None:
        super().__init__()
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)]
        require(bool(layers), "network", type(network).__name__, "give one with convolutions or linear layers")
        for layer in layers:
            register_parametrization(layer, "weight", WeightNoise(layer.weight, granularity, initial_strength))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        logits: Tensor = self.network(x)
        return logits


class BayesianWeights(nn.Module):
    """Any network with a :class:`GaussianWeight` in place of each of its parameters, batch normalisation's among them.

    Args:
        network: network from images (B, C, H, W) to logits (B, K); it is changed. Its parameters are the initial means.
        initial_std: see :class:`GaussianWeight`.

    Raises:
        SettingError: if the std is not positive, or the network has no parameters.
    """

    def __init__(self, network: nn.Module, initial_std: float = 0.08) -> None:
        super().__init__()
        names = [(layer, name) for layer in network.modules() for name, _ in layer.named_parameters(recurse=False)]
        require(bool(names), "network", type(network).__name__, "give one with parameters")
        for layer, name in names:
            register_parametrization(layer, name, GaussianWeight(getattr(layer, name), initial_std))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        logits: Tensor = self.network(x)
        return logits


def divergence(network: nn.Module, prior_std: float) -> Tensor:
    """KL divergence of all Gaussian weights from the prior N(0, prior_std^2), summed: a scalar."""
    return torch.stack(
        [
            distribution.divergence(parametrization.original, prior_std)
            for parametrization in network.modules()
            if isinstance(parametrization, nn.utils.parametrize.ParametrizationList)
            for distribution in parametrization
            if isinstance(distribution, GaussianWeight)
        ]
    ).sum()
