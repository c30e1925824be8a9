"""Networks, inputs and comparisons for the tests of auto_LiRPA behind the verifier interface."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust.bounds.verifier import other_classes
from robust.networks import Normalize
from tests.random_networks import corners_and_points

needs_lirpa = pytest.mark.skipif(importlib.util.find_spec("auto_LiRPA") is None, reason="auto_LiRPA is not installed")
METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown")


class Block(nn.Module):
    """A residual block with batch-norm, as of ResNet."""

    def __init__(self, width, out, stride):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride)

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def seeded(build):
    torch.manual_seed(0)
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def conv_net(classes=4):
    def build():
        layers = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, classes))

    return seeded(build)


def residual_net():
    def build():
        body = [Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]), nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), Block(4, 4, 1)]
        return nn.Sequential(*body, Block(4, 5, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))

    return seeded(build)


def case(batch=4, size=0.1, classes=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, mix = torch.rand(2, batch, 3, 6, 6, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (batch,), generator=generator), size * mix


def worst_sampled(network, x, y, budgets, count=150):
    """Smallest margins (B, K-1) and largest cross-entropy (B,) over random points and corners of the box."""
    points = corners_and_points(x, budgets, count)
    with torch.no_grad():
        logits = network(points.flatten(0, 1))
        labels = y.repeat(count)
        margins = logits.gather(1, labels[:, None]) - logits.gather(1, other_classes(labels, logits.shape[1]))
        loss = F.cross_entropy(logits, labels, reduction="none")
    return margins.view(count, len(y), -1).amin(0), loss.view(count, -1).amax(0)


def gradients(loss, network, budgets):
    return torch.autograd.grad(loss.sum(), [budgets, *network.parameters()], allow_unused=True)
