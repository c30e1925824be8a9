"""Noise on weights: its deviation, what is learned, the closed form of the divergence, the switch."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from robust.errors import SettingError
from robust.networks import (
    BayesianWeights,
    DMSmall,
    GaussianWeight,
    NoisyWeights,
    ResNetV1,
    WeightNoise,
    divergence,
    noise_sources,
    without_noise,
)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize(("granularity", "shape"), [("layer", (1, 1)), ("channel", (3, 1)), ("element", (3, 64))])
def test_deviation_is_alpha_times_that_of_the_weight(granularity, shape):
    network = NoisyWeights(small(), granularity)
    layer, noise = network.network[4], network.network[4].parametrizations.weight[0]
    assert noise.alpha.shape == shape
    with torch.no_grad():
        noise.alpha.copy_(torch.rand(shape) + 0.1)
        original = layer.parametrizations.weight.original
        drawn = torch.stack([layer.weight for _ in range(5000)])
    expected = (noise.alpha * original.std()).expand(3, 64)
    torch.testing.assert_close(drawn.std(0), expected, rtol=0.06, atol=0)
    assert ((drawn.mean(0) - original).abs() < 5 * expected / 5000**0.5).all()


def test_only_alpha_takes_the_noises_gradient():
    weight = torch.randn(3, 4, requires_grad=True)
    noise = WeightNoise(weight, "channel")
    noise(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 4))  # nothing comes through std(w)
    assert (noise.alpha.grad != 0).all()


def test_which_parameters_get_noise():
    assert len(noise_sources(NoisyWeights(small()))) == 2  # convolution and linear layer
    network = BayesianWeights(small())
    assert len(noise_sources(network)) == 6  # weight and bias of each of the three layers
    assert sum(p.numel() for p in network.parameters()) == 2 * sum(p.numel() for p in small().parameters())


def test_bayesian_weights_have_the_learned_mean_and_deviation():
    network = BayesianWeights(small(), 0.3)
    layer = network.network[4]
    mu = layer.parametrizations.weight.original
    with torch.no_grad():
        layer.parametrizations.weight[0].log_sigma[0] = -2.0
        drawn = torch.stack([layer.weight for _ in range(5000)])
    torch.testing.assert_close(drawn[:, 1:].std(0), torch.full((2, 64), 0.3), rtol=0.06, atol=0)
    torch.testing.assert_close(drawn[:, 0].std(0), torch.full((64,), -2.0).exp(), rtol=0.06, atol=0)
    assert ((drawn.mean(0) - mu).abs() < 5 * 0.3 / 5000**0.5).all()


def test_the_divergence_is_that_of_torch_distributions():
    network = BayesianWeights(small(), 0.3).double()
    expected = 0.0
    for name, mu in small().double().named_parameters():
        layer, parameter = name.split(".")
        sigma = network.network[int(layer)].parametrizations[parameter][0].log_sigma
        with torch.no_grad():
            sigma.copy_(-torch.rand_like(sigma))
        expected += kl_divergence(Normal(mu, sigma.exp()), Normal(0.0, 0.08)).sum()
    torch.testing.assert_close(divergence(network, 0.08), expected)


@pytest.mark.parametrize("wrapper", [NoisyWeights, BayesianWeights])
def test_without_noise_it_is_the_plain_network_also_in_a_copy(wrapper):
    plain = ResNetV1().eval()
    noisy = copy.deepcopy(wrapper(copy.deepcopy(plain)))
    x = torch.rand(2, 3, 32, 32)
    with without_noise(noisy):
        assert torch.equal(noisy(x), plain(x))
    assert not torch.equal(noisy(x), noisy(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NoisyWeights(DMSmall(), "neuron"), "granularity: got 'neuron'; give one of layer, channel, element"),
        (lambda: NoisyWeights(nn.Flatten()), "network: got 'Flatten'; give one with convolutions"),
        (lambda: BayesianWeights(DMSmall(), 0.0), "initial_std: got 0.0"),
        (lambda: WeightNoise(torch.ones(2, 2), "neuron"), "granularity: got 'neuron'; give one of layer, channel"),
        (lambda: GaussianWeight(torch.ones(2, 2), 0.0), "initial_std: got 0.0"),
        (lambda: BayesianWeights(nn.Flatten()), "network: got 'Flatten'; give one with parameters"),
    ],
)
def test_wrong_settings(build, message):
    with pytest.raises(SettingError, match=message):
        build()


def test_a_weight_of_one_entry_has_no_std():
    """Regression: its noise was NaN, and the training said that the weights had diverged."""
    with pytest.raises(
        SettingError, match=r"^network: got 'a layer whose weight has shape \(1, 1, 1, 1\)'; the std of"
    ):
        NoisyWeights(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 3)))
