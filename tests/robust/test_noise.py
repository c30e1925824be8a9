"""Residual networks with places for noise, and the noise itself."""

import copy

import pytest
import torch
from torch import nn

from robust.errors import SettingError
from robust.networks import DMSmall, Noisy, PerturbationInjection, ResNet18, ResNetV1, injections, without_noise

PLACES = ["bn1", "*.addition"]
CIFAR = (3, 32, 32)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("depth", "multiplier", "parameters", "scales"),
    [
        (20, 1, 269_722, 102_400),
        (32, 1, 464_154, 159_744),
        (44, 1, 658_586, 217_088),
        (56, 1, 853_018, 274_432),
        (20, 1.5, 605_026, 153_600),
        (20, 2, 1_073_962, 204_800),
        (20, 4, 4_286_026, 409_600),
    ],
)
def test_counts_of_resnet_v1(depth, multiplier, parameters, scales):
    network = ResNetV1(depth, multiplier)
    assert count(network) == parameters
    noisy = Noisy(network, PLACES, CIFAR)
    assert count(noisy) == parameters + scales
    assert len(injections(noisy)) == 1 + (depth - 2) // 2


def test_counts_of_resnet_18():
    noisy = Noisy(ResNet18(), PLACES, CIFAR)
    assert len(injections(noisy)) == 9
    assert count(noisy) == 11_173_962 + 311_296


def test_the_shortcut_without_parameters():
    block = ResNetV1().stage2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 4, 4)], 1)
    assert torch.equal(block(x), expected)


def test_noise_has_the_learned_deviation_and_is_independent_in_each_example():
    torch.manual_seed(0)
    noise = PerturbationInjection((2, 2, 2))
    with torch.no_grad():
        noise.theta[0, 0] = 0.5
    drawn = noise(torch.zeros(20_000, 2, 2, 2))
    torch.testing.assert_close(drawn.std(0), noise.theta[0], rtol=0.05, atol=0)
    assert drawn.flatten(1).T.corrcoef().fill_diagonal_(0).abs().max() < 0.05
    assert (drawn[::2] * drawn[1::2]).mean().abs() < 0.01


@pytest.mark.parametrize("shared", [False, True])
def test_copies_of_an_image(shared):
    network = Noisy(DMSmall((1, 10, 10), 3), ["0"], (1, 10, 10), shared_noise=shared).eval()
    one, other = network(torch.rand(1, 1, 10, 10).repeat(2, 1, 1, 1))
    assert torch.equal(one, other) is shared


def test_the_gradient_reaches_the_scale():
    noise = PerturbationInjection((1, 2, 2))
    noise(torch.zeros(3, 1, 2, 2)).square().sum().backward()
    assert (noise.theta.grad > 0).all()  # the variance grows with it


def test_without_noise_it_is_the_plain_network():
    plain = ResNetV1().eval()
    noisy = Noisy(copy.deepcopy(plain), PLACES, CIFAR)
    x = torch.rand(2, *CIFAR)
    with without_noise(noisy):
        assert torch.equal(noisy(x), plain(x))
    assert not torch.equal(noisy(x), plain(x))


def test_insertion_leaves_modes_and_statistics():
    network = ResNetV1().train()
    network.linear.eval()
    before = copy.deepcopy(network.bn1.running_mean)
    noisy = Noisy(network, PLACES, CIFAR).network
    assert noisy.stage1.training
    assert not noisy.linear.training
    assert torch.equal(noisy.bn1[0].running_mean, before)


def test_a_module_at_two_places_has_noise_at_each():
    """Regression: it had one name, and the other place stayed without noise."""
    act = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), act, nn.Conv2d(4, 4, 3, padding=1), act, nn.Flatten())
    noisy = Noisy(network, ["1", "3"], (1, 8, 8))
    first, second = injections(noisy)
    assert first.theta.shape == second.theta.shape == (1, 4, 8, 8)
    assert noisy.network[1][1] is first
    assert noisy.network[3][1] is second
    assert noisy.network[1][0] is noisy.network[3][0] is act


def test_a_place_within_a_shared_block_has_noise_once():
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    noisy = Noisy(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), block, block), ["*.1", "0"], (1, 8, 8))
    assert len(injections(noisy)) == 2
    assert noisy(torch.zeros(2, 1, 8, 8)).shape == (2, 4, 8, 8)


class Unused(nn.Sequential):
    """A network with a layer that it does not run."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3))

    def forward(self, x):
        return self[0](x)


def on_two_sizes():
    act = nn.ReLU()
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), act, nn.Conv2d(4, 4, 3, stride=2), act)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Noisy(on_two_sizes(), ["3"], (1, 8, 8)),
            r"after: got '3'; it runs on maps of several shapes, \[\(4, 3, 3\), \(4, 8, 8\)\]; give each a module",
        ),
        (lambda: Noisy(Unused(), ["1"], (1, 8, 8)), "after: got '1'; the network does not run it; leave it out"),
        (lambda: ResNetV1(18), "depth: got 18"),
        (lambda: ResNetV1(width_multiplier=0.3), "width_multiplier: got 0.3"),
        (lambda: Noisy(ResNetV1(), ["bn9"], CIFAR), "after: got 'bn9'.*stage1.0.addition"),
        (lambda: Noisy(ResNetV1(), PLACES, (1, 32, 32)), r"image_shape: got \(1, 32, 32\)"),
        (lambda: PerturbationInjection((1, 2, 2), 0.0), "initial_scale: got 0.0"),
    ],
)
def test_wrong_settings(build, message):
    with pytest.raises(SettingError, match=message):
        build()
