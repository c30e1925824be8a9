"""Bounds of networks that are graphs: sound, exact at a point, equal to auto_LiRPA's, with right gradients."""

import math
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, LirpaVerifier, certify, crown
from robust.bounds.operations import Interval
from robust.threat_models import Box, LinfBall, PixelBox
from tests.lirpa_cases import needs_lirpa
from tests.random_graphs import ACTIVATIONS, UNNORMED, RandomGraph, assert_not_crossed
from tests.random_networks import corners_and_points

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
METHODS = ("ibp", "crown-ibp", "tightest", "crown")


def others(values, y):
    """The entries (..., B, K) of the classes other than the label, (..., B, K-1)."""
    kept = torch.ones(values.shape[-2:]).scatter(1, y[:, None], 0).bool()
    return values[..., kept].unflatten(-1, (len(y), -1))


def true_margins(network, points, y):
    """z_y - z_k of points (N, B, C, H, W) for the other classes, (N, B, K-1)."""
    with torch.no_grad():
        logits = network(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    return others(logits.gather(2, y.expand(len(points), -1)[..., None]) - logits, y)


def case(network, size, batch=2):
    x = torch.rand(batch, *network.shape, dtype=next(network.parameters()).dtype)
    return x, torch.randint(network.last.out_features, (batch,)), size * torch.rand_like(x)


def assert_sound(network, size):
    """No sampled or attacked point crosses a bound, and a box of radius zero has the network's margins."""
    x, y, budgets = case(network, size)
    box = PixelBox(budgets).interval(x)
    points = [corners_and_points(x, budgets, 200), PGD(steps=5)(network, PixelBox(budgets), x, y)[None]]
    reached = true_margins(network, torch.cat(points), y).amin(0)
    exact = true_margins(network, x[None], y)[0]
    for method in METHODS:
        verifier = FeedForwardVerifier(method)
        with torch.no_grad():
            assert_not_crossed(verifier.margins(network, box, y), reached, method)
            close = {"rtol": 1e-3, "atol": 1e-3}
            torch.testing.assert_close(verifier.margins(network, Box(x, x), y), exact, **close)
    for weight in (0.0, 1.0):
        loss = F.cross_entropy(network(x), y, reduction="none")
        bound = FeedForwardVerifier().cross_entropy(network, box, y, weight)
        assert not (loss > bound + 1e-4 * (1 + bound.abs())).any()


sizes = st.sampled_from([1e-3, 0.03, 0.2])


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31), sizes)
def test_no_point_crosses_a_bound_of_a_random_graph(seed, size):
    assert_sound(RandomGraph(seed).double(), size)  # bounds that reach 1e14 have no digits in float32


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**31), sizes)
def test_no_point_crosses_a_bound_of_500_random_graphs(seed, size):
    assert_sound(RandomGraph(seed).double(), size)  # bounds that reach 1e14 have no digits in float32


def assert_range_holds(seed, size, method):
    network = RandomGraph(seed, kinds=UNNORMED, activations=ROUNDED, normed=False)
    x, y, budgets = case(network, size)
    low, high = FeedForwardVerifier(method).margin_range(network, PixelBox(budgets).interval(x), y)
    assert (low <= high).all()
    points = corners_and_points(x.double(), budgets.double(), 60)
    assert (low.double() <= true_margins(network.double(), points, y).amin(0)).all()


ROUNDED = tuple(name for name in ACTIVATIONS if name != "square")


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), sizes, st.sampled_from(METHODS[:3]))
def test_the_range_of_a_random_graph_holds_what_float64_gives(seed, size, method):
    assert_range_holds(seed, size, method)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), sizes, st.sampled_from(METHODS[:3]))
def test_the_range_of_300_random_graphs_holds_what_float64_gives(seed, size, method):
    assert_range_holds(seed, size, method)


def test_certificates_of_operations_whose_rounding_is_not_known_are_computed_again_in_float64():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.rand(20, 1, 2, 2)
    y = network(x).argmax(1)
    for verifier in (FeedForwardVerifier("tightest"), FeedForwardVerifier("crown")):
        assert verifier.margin_range(network, LinfBall(1e-3).interval(x), y) is None
        verdicts = certify(verifier, network, LinfBall(1e-3), x, y)
        assert verdicts.certified.any()
        assert torch.equal(verdicts.certified, verdicts.recomputed)


@pytest.mark.thorough
@needs_lirpa
@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.01, 0.1]))
@example(3250280, 0.1)  # where interval bounds of a margin are above the linear ones
def test_residual_networks_have_the_bounds_of_auto_lirpa(seed, size):
    torch.manual_seed(seed)
    network = Residual().eval()
    x, y = torch.rand(2, 1, 6, 5), torch.tensor([0, 2])
    box = PixelBox(size * torch.rand_like(x)).interval(x)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for method in ("ibp", "crown-ibp"):
        theirs = LirpaVerifier(method=method).margins(network, box, y)
        torch.testing.assert_close(FeedForwardVerifier(method).margins(network, box, y), theirs, **close)
    theirs = LirpaVerifier(method="crown").margins(network, box, y)  # by linear bounds alone
    with patch.object(crown, "_tightened", by_crown_alone), patch.object(FeedForwardVerifier, "_highest", unbounded):
        torch.testing.assert_close(FeedForwardVerifier("crown").margins(network, box, y), theirs, **close)
    lirpa = LirpaVerifier()
    for weight in (0.0, 0.5, 1.0):
        theirs = lirpa.cross_entropy(network, box, y, weight)
        torch.testing.assert_close(FeedForwardVerifier().cross_entropy(network, box, y, weight), theirs, **close)


TIGHTENED = crown._tightened


def unbounded(verifier, graph, values, y):
    """Interval bounds of margins that say nothing, of which ours takes the larger one with the linear bounds."""
    return torch.full((len(y), graph.num_classes - 1), math.inf)


def by_crown_alone(graph, values, value, rows_at_once, bent):
    """An interval by linear bounds backwards, without the intersection with that of interval propagation."""
    center, radius = values[value]
    everywhere = torch.ones_like(bent)
    return TIGHTENED(graph, [*values[:value], Interval(center, radius + 1e3)], value, rows_at_once, everywhere)


@needs_lirpa
def test_auto_lirpas_crown_holds_the_true_margins_where_branches_of_other_strides_are_added():
    torch.manual_seed(5)  # in convolution patches, its bound of the second image was 0.0954, and the margin is 0.0499
    network = Residual().eval()
    x, y = torch.rand(2, 1, 6, 5), torch.tensor([0, 2])
    box = PixelBox(0.01 * torch.rand_like(x)).interval(x)
    exact = true_margins(network, x[None], y)[0]
    assert (LirpaVerifier(method="crown").margins(network, box, y) <= exact + 1e-6).all()


class Residual(nn.Module):
    """Two residual blocks, one that halves the sides, batch-norm between."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.short, self.last = nn.Conv2d(4, 6, 1, stride=2), nn.Linear(54, 3)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        h = F.relu(self.norm(self.stem(x)))
        h = F.relu(h + self.one(h))
        return self.last(torch.flatten(F.relu(self.other(h) + self.short(h)), 1))


class Patterned(nn.Module):
    """Activations and a weight in the shape and type of other activations."""

    shape = (1, 4, 4)

    def __init__(self):
        super().__init__()
        self.hidden, self.scale, self.last = nn.Linear(16, 16), nn.Parameter(torch.rand(1, 4, 4)), nn.Linear(16, 3)

    def forward(self, x):
        h = F.relu(self.hidden(x.flatten(1)).view_as(x))
        h = h - torch.sigmoid(h.mean((2, 3), keepdim=True)).expand_as(other=h) + F.relu(x).flatten(1).reshape_as(h)
        return self.last((h * self.scale.to(x).expand_as(x)).type_as(x).flatten(1))


def test_operands_that_give_a_shape_or_a_type_alone_have_no_bounds():
    """Regression: they were inputs of the operation, which ended in a TypeError, ValueError or AttributeError."""
    torch.manual_seed(0)
    for size in (1e-3, 0.03, 0.2):
        assert_sound(Patterned().eval(), size)
    for crown_weight in (0.0, 1.0):
        assert_gradients(Patterned().double(), 0, crown_weight)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("crown_weight", [0.0, 1.0])
def test_gradients_to_weights_and_budgets_agree_with_finite_differences(seed, crown_weight):
    assert_gradients(RandomGraph(seed, kinds=("residual", "gated", "joined")).double(), seed, crown_weight)


def assert_gradients(network, seed, crown_weight):
    """Gradients of the training loss are those of finite differences."""
    x, y, budgets = case(network, 0.1, batch=1)
    budgets = (budgets + 0.02).requires_grad_()
    parameters = list(network.parameters())
    loss = FeedForwardVerifier().cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight).sum()
    gradients = torch.autograd.grad(loss, [budgets, *parameters], allow_unused=True)
    torch.manual_seed(seed)
    for tensor, gradient in zip([budgets, *parameters], gradients, strict=True):
        direction = torch.randn_like(tensor)
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                tensor.add_(step * direction)
                bound = FeedForwardVerifier().cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight)
                tensor.sub_(step * direction)
            values.append(bound.sum())
        expected = (values[0] - values[1]) / 2e-6
        given = torch.zeros_like(expected) if gradient is None else (gradient * direction).sum()
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
