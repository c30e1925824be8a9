"""Random networks, inputs and budgets for the property-based tests of bounds."""

import torch
from hypothesis import strategies as st
from torch import nn

from robust.networks import Normalize
from robust.threat_models import PixelBox


def random_network(seed, *, channels, convs, batch_norm, pool, normalise, classes, strided):
    """A feed-forward classifier of 6x6 images in evaluation mode, batch-norm statistics away from their defaults."""
    torch.manual_seed(seed)
    channels = channels if convs else 1
    layers, width, side = [], channels, 6
    if normalise:
        layers.append(Normalize([0.3] * channels, [0.2 + 0.1 * i for i in range(channels)]))
    for i in range(convs):
        stride = 2 if strided and i == 0 else 1
        layers.append(nn.Conv2d(width, 4, 3, stride=stride, padding=1, groups=2 if width == 4 else 1))
        width, side = 4, (side - 1) // stride + 1
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
            layers[-1].running_mean.uniform_(-0.5, 0.5)
            layers[-1].running_var.uniform_(0.5, 2)
            nn.init.uniform_(layers[-1].weight, -1.5, 1.5)
        layers.append(nn.ReLU())
    if pool == "plain":
        layers.append(nn.AvgPool2d(2))
        side //= 2
    elif pool == "padded":
        layers.append(nn.AvgPool2d(2, stride=1, padding=1))
        side += 1
    layers += [nn.Flatten(), nn.Linear(width * side * side, 7), nn.ReLU(), nn.Linear(7, classes)]
    return nn.Sequential(*layers).eval()


def _networks(*pools):
    return st.builds(
        random_network,
        st.integers(0, 2**31),
        channels=st.sampled_from([1, 2]),
        convs=st.integers(0, 2),
        batch_norm=st.booleans(),
        pool=st.sampled_from(pools),
        normalise=st.booleans(),
        classes=st.sampled_from([2, 3, 10]),
        strided=st.booleans(),
    )


networks = _networks("none", "plain", "padded")
networks_for_auto_lirpa = _networks("none")  # its 0.3 has no linear bounds of average pooling


def random_case(network, size, batch=4):
    """Images, labels and per-pixel budgets up to ``size`` for a network from ``random_network``."""
    channels = next(m.in_channels for m in network if isinstance(m, nn.Conv2d)) if _convs(network) else 1
    x = torch.rand(batch, channels, 6, 6)
    return x, torch.randint(0, network[-1].out_features, (batch,)), size * torch.rand_like(x)


def _convs(network):
    return any(isinstance(m, nn.Conv2d) for m in network)


def corners_and_points(x, budgets, count):
    """Random points of the box and random corners, (count, B, C, H, W)."""
    lower, upper = PixelBox(budgets).interval(x)
    mix = torch.rand(count, *x.shape, dtype=x.dtype)
    mix[::2] = mix[::2].round()
    return lower + (upper - lower) * mix


class Lambda(nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
