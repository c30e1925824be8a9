"""Functions with a gradient of their own have that of the plain chain of operations, which autograd differentiates."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.bounds import FeedForwardVerifier, LirpaVerifier
from robust.bounds.operations import Interval
from robust.bounds.operations.linear import Linear
from robust.bounds.operations.relu import ReLU
from robust.errors import SettingError
from robust.threat_models import PixelBox
from tests.lirpa_cases import needs_lirpa


def intervals(generator, dtype):
    """Intervals (3, 4, 5) on both sides of 0, above it, below it, and of width 0."""
    center, radius = (torch.randn(3, 4, 5, generator=generator, dtype=dtype) for _ in range(2))
    radius = radius.abs()
    center[:, 1], center[:, 2] = radius[:, 1] + center[:, 1].abs(), -radius[:, 2] - center[:, 2].abs()
    radius[:, 3] = 0
    return Interval(center.requires_grad_(), radius.requires_grad_())


def plain_relu(h):
    lower, upper = h.lower.relu(), h.upper.relu()
    return (lower + upper) / 2, (upper - lower) / 2


def plain_rows(A, h):
    """CROWN's rows and constant of one ReLU."""
    lower, upper = h.lower[:, None], h.upper[:, None]
    unstable = (lower < 0) & (upper > 0)
    slope = torch.where(unstable, upper / torch.where(unstable, upper - lower, 1.0), (lower >= 0).to(A.dtype))
    slope = torch.where(upper <= 0, 0.0, slope)
    intercept = torch.where(unstable, -lower * slope, 0.0)
    rows = A.clamp(min=0) * slope + A.clamp(max=0) * (h.center[:, None] > 0)
    return rows, (A.clamp(min=0) * intercept).flatten(2).sum(-1)


def assert_gradients_equal(found, expected, inputs, generator):
    """Of a random weighted sum of the outputs, to each input."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    weights = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in expected]
    sums = [sum((w * each).sum() for w, each in zip(weights, outputs, strict=True)) for outputs in (found, expected)]
    gradients = [torch.autograd.grad(each, inputs) for each in sums]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4 if one.dtype == torch.float32 else 1e-9, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_relu_of_an_interval(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    h = intervals(generator, dtype)
    h = Interval(h.center, (h.radius + 0.01 * (torch.arange(4) < 3)[:, None]).detach().requires_grad_())
    assert_gradients_equal(ReLU().interval(h), plain_relu(h), h, generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_rows_through_a_relu(dtype, count, seed):
    """Positive coefficients of inactive units, whose rows are 0, among them."""
    generator = torch.Generator().manual_seed(seed)
    h = intervals(generator, dtype)
    A = torch.randn(3, count, 4, 5, generator=generator, dtype=dtype).requires_grad_()
    for (rows,), constant in (ReLU().backward(A, h), ReLU().backward_from(ReLU().interval(h), A, h)):
        assert_gradients_equal((rows, constant), plain_rows(A, h), (A, *h), generator)


def test_gradients_are_finite_where_half_an_upper_end_is_below_the_least_number():
    least = torch.tensor(1.4e-45)
    center, radius = (-7 * least).view(1, 1, 1).requires_grad_(), (8 * least).view(1, 1, 1).requires_grad_()
    (rows,), constant = ReLU().backward(torch.ones(1, 1, 1, 1), Interval(center, radius))
    gradients = torch.autograd.grad(rows.sum() + constant.sum(), (center, radius))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("count", [40, 200])
def test_signs_of_many_weights(count):
    """More rows than are held at a time."""
    weight = torch.randn(count, 3, requires_grad=True)
    radius = torch.rand(5, 3)
    (found,) = torch.autograd.grad(Linear(weight, None).radius(radius).square().sum(), weight)
    (wanted,) = torch.autograd.grad(F.linear(radius, weight.abs()).square().sum(), weight)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("shape", [(3, 6), (3, 2, 6)])
def test_radius_through_absolute_weights(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=generator)
    weight[1, 2] = 0  # where the absolute value has the gradient 0
    weight, radius = weight.requires_grad_(), torch.rand(shape, generator=generator).requires_grad_()
    expected = F.linear(radius, weight.abs())
    assert_gradients_equal((Linear(weight, None).radius(radius),), (expected,), (weight, radius), generator)
    with torch.autocast("cpu", torch.bfloat16):
        low, plain = Linear(weight, None).radius(radius), F.linear(radius, weight.abs())
    assert low.dtype == plain.dtype == torch.bfloat16
    for found, wanted in zip(
        *(torch.autograd.grad(each.sum(), (weight, radius)) for each in (low, plain)), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


class Frozen(nn.Module):
    """A layer behind another one, whose weights the forward pass keeps from the gradient, and a path beside both."""

    def __init__(self, way):
        super().__init__()
        self.way, self.first, self.beside, self.last = way, nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = x.flatten(1)
        if self.way == "no_grad":
            with torch.no_grad():
                h = self.first(x).relu()
        else:
            h = F.linear(x, self.first.weight, self.first.bias).relu().detach()
        return self.last(h + self.beside(x).relu())


@pytest.mark.parametrize("way", ["no_grad", "detach"])
def test_weights_without_a_gradient_by_the_logits_have_none_by_the_bounds(way):
    """Regression: a part that the forward pass freezes was trained by the bounds."""
    torch.manual_seed(0)
    network, x, y = Frozen(way), torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    weights, names = list(network.parameters()), [name for name, _ in network.named_parameters()]
    plain = torch.autograd.grad(F.cross_entropy(network(x), y), weights, allow_unused=True)
    for weight in (0.0, 0.5):
        point = FeedForwardVerifier().cross_entropy(network, PixelBox(torch.zeros_like(x)).interval(x), y, weight)
        given = torch.autograd.grad(point.mean(), weights, allow_unused=True)
        for name, one, other in zip(names, given, plain, strict=True):
            assert (one is None) == (other is None) == name.startswith("first")
            assert one is None or torch.allclose(one, other, atol=1e-6)
    budgets = torch.full_like(x, 0.1).requires_grad_()
    loss = FeedForwardVerifier().cross_entropy(network, PixelBox(budgets).interval(x), y).sum()
    assert torch.autograd.grad(loss, budgets)[0].abs().amin() > 0, "the box keeps its gradient"
    network.first.requires_grad_(False)
    network.way = "no_grad"
    FeedForwardVerifier().cross_entropy(network, PixelBox(budgets).interval(x), y).sum().backward()


@pytest.mark.parametrize("weight", [-0.5, 1.5, float("nan")])
@pytest.mark.parametrize("verifier", [FeedForwardVerifier(), pytest.param("lirpa", marks=needs_lirpa)])
def test_weights_of_crown_out_of_range_are_refused(weight, verifier):
    """Regression: above 1 and NaN were taken for 1."""
    verifier = LirpaVerifier() if verifier == "lirpa" else verifier
    box = PixelBox(torch.zeros(1, 1, 2, 2)).interval(torch.rand(1, 1, 2, 2))
    with pytest.raises(SettingError, match=r"^crown_weight: got .*; give a number from 0 \(IBP alone\) to 1"):
        verifier.cross_entropy(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), box, torch.tensor([0]), weight)


def test_second_derivatives_are_refused():
    """Regression: a text about arguments of a function inside."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    budgets = torch.full((1, 1, 2, 2), 0.1).requires_grad_()
    loss = FeedForwardVerifier().cross_entropy(
        network, PixelBox(budgets).interval(torch.rand(1, 1, 2, 2)), torch.tensor([0])
    )
    (gradient,) = torch.autograd.grad(loss.sum(), budgets, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
