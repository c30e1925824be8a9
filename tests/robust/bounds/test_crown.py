"""CROWN: a backward pass for each activation that bends over its interval, and no other."""

import itertools
import math
from unittest.mock import patch

import torch
from torch import nn

from robust.bounds import FeedForwardVerifier
from robust.bounds.graph import Graph
from robust.threat_models import LinfBall, PixelBox


def test_what_bends_alone_is_bounded_and_each_image_as_if_alone():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    x, y = torch.rand(4, 1, 3, 3), torch.tensor([0, 1, 2, 0])
    budgets = torch.tensor([0.0, 1e-3, 0.01, 0.05]).view(4, 1, 1, 1)
    together, rows = crown(network, x, y, budgets)
    alone = [crown(network, x[[i]], y[[i]], budgets[[i]]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat([margins for margins, _ in alone]), rtol=1e-5, atol=1e-6)
    assert rows < 2 * 30 + 2, "each neuron has two rows, each margin one"
    assert alone[0][1] == 2, "no neuron bends over a point"


def crown(network, x, y, budgets):
    """Margins, and the number of rows of all backward passes."""
    plain, counts = Graph.upper_bound, []

    def counted(graph, values, A, value=None, **options):
        counts.append(A.shape[1])
        return plain(graph, values, A, value, **options)

    with patch.object(Graph, "upper_bound", counted), torch.no_grad():
        margins = FeedForwardVerifier("crown").margins(network, PixelBox(budgets).interval(x), y)
    return margins, sum(counts)


def test_gradients_agree_with_finite_differences():
    """A pooling layer relaxes the ReLU's results, so that these have a backward pass, too."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(12, 3)).double()
    x, y = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1])
    budgets = torch.full_like(x, 0.1).requires_grad_()

    def loss(sizes):
        return FeedForwardVerifier("crown").margins(network, PixelBox(sizes).interval(x), y).sum()

    (gradient,) = torch.autograd.grad(loss(budgets), budgets)
    for _ in range(3):
        direction, step = torch.randn_like(x), 1e-6
        ends = [loss((budgets + sign * step * direction).detach()) for sign in (1, -1)]
        torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]).detach() / (2 * step))


def test_crown_is_within_the_other_bounds_and_exact_corners_of_a_small_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    for layer in (network[1], network[3]):
        nn.init.normal_(layer.weight)
    x = torch.rand(5, 1, 2, 2)
    y = network(x).argmax(1)
    bounds = {}
    for method in ("ibp", "crown-ibp", "crown"):
        bounds[method] = FeedForwardVerifier(method).margins(network, LinfBall(0.4).interval(x), y)
        with torch.no_grad():
            little = FeedForwardVerifier(method, memory=1).margins(network, LinfBall(0.4).interval(x), y)
        torch.testing.assert_close(little, bounds[method].detach(), rtol=1e-5, atol=1e-5)
    assert (bounds["crown"] >= bounds["ibp"] - 1e-5).all()
    assert bounds["crown"].sum() > bounds["crown-ibp"].sum()
    for signs in itertools.product((0.0, 1.0), repeat=4):
        box = LinfBall(0.4).interval(x)
        corner = box.lower + (box.upper - box.lower) * torch.tensor(signs).view(1, 1, 2, 2)
        logits = network(corner)
        margins = logits.gather(1, y[:, None]) - logits
        assert (bounds["crown"].amin(1) <= margins.scatter(1, y[:, None], math.inf).amin(1) + 1e-5).all()
