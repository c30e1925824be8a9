"""Certificates hold in exact arithmetic, at every scale: against fractions, and against float64 on random networks."""

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from robust.bounds import FeedForwardVerifier, LirpaVerifier, certify
from robust.bounds.agreement import checked_graph
from robust.bounds.margins import margin_interval
from robust.bounds.operations.base import Arithmetic, Interval
from robust.bounds.operations.relu import ReLU
from robust.bounds.rounding import RoundingErrors, of_last
from robust.threat_models import Box, LinfBall, PixelBox
from tests.random_graphs import RandomGraph
from tests.random_networks import corners_and_points, networks, random_case

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
METHODS = ("ibp", "crown-ibp", "tightest")


def exact(values):
    """Nested lists of a tensor's numbers as fractions."""
    return [exact(row) for row in values] if isinstance(values, list) else Fraction(values)


def exact_margin(network, x, epsilon, label, other):
    """The least margin of a linear network over the ball cut to [0, 1], as a fraction."""
    rows, bias = exact(network[-1].weight.tolist()), exact(network[-1].bias.tolist())
    total = bias[label] - bias[other]
    for pixel, of_label, of_other in zip(exact(x.flatten().tolist()), rows[label], rows[other], strict=True):
        weight = of_label - of_other
        end = max(pixel - epsilon, Fraction(0)) if weight > 0 else min(pixel + epsilon, Fraction(1))
        total += weight * end
    return total


def last_certified(certified, low=0.0, high=1.0):
    """The largest epsilon that ``certified`` accepts, to float64's precision, by bisection."""
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if certified(middle) else (low, middle)
    return low


@pytest.mark.thorough
@pytest.mark.parametrize("margins", [True, False])
def test_no_certificate_of_a_linear_network_is_false_at_the_last_epsilon_that_is_certified(margins):
    naive_violations = recomputed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(30, 2))
        x = torch.rand(1, 1, 5, 6)
        y = network(x).argmax(1)
        label = int(y)

        def verdict(epsilon, safe, network=network, x=x, y=y):
            ball, verifier = LinfBall(epsilon), FeedForwardVerifier()
            return certify(verifier, network, ball, x, y, rounding_safe=safe, margins=margins)

        naive = last_certified(lambda epsilon, verdict=verdict: bool(verdict(epsilon, False).certified))
        naive_violations += exact_margin(network, x, Fraction(naive), label, 1 - label) <= 0
        low, high = naive - 1e-7, naive + 1e-5  # nothing that is certain is given up
        assert verdict(low, True).certified
        assert not verdict(high, True).certified
        safe = last_certified(lambda epsilon, verdict=verdict: bool(verdict(epsilon, True).certified), low, high)
        assert exact_margin(network, x, Fraction(safe), label, 1 - label) > 0
        recomputed += int(verdict(safe, True).recomputed)
    assert naive_violations > 2  # what the test is about
    assert recomputed == 20


def exact_ibp(network, lower, upper, label):
    """IBP's margins of a network of linear layers and ReLUs with the last layer merged, as fractions."""
    lower, upper = exact(lower.flatten().tolist()), exact(upper.flatten().tolist())
    *hidden, last = [module for module in network if not isinstance(module, nn.Flatten)]
    for module in hidden:
        if isinstance(module, nn.ReLU):
            lower, upper = [max(v, Fraction(0)) for v in lower], [max(v, Fraction(0)) for v in upper]
            continue
        rows, bias = exact(module.weight.tolist()), exact(module.bias.tolist())
        ends = list(zip(lower, upper, strict=True))
        lows = [
            b + sum(w * (lo if w > 0 else up) for w, (lo, up) in zip(row, ends, strict=True))
            for row, b in zip(rows, bias, strict=True)
        ]
        ups = [
            b + sum(w * (up if w > 0 else lo) for w, (lo, up) in zip(row, ends, strict=True))
            for row, b in zip(rows, bias, strict=True)
        ]
        lower, upper = lows, ups
    rows, bias = exact(last.weight.tolist()), exact(last.bias.tolist())
    margins = []
    for other in range(len(rows)):
        if other != label:
            weights = [a - b for a, b in zip(rows[label], rows[other], strict=True)]
            low = sum(w * (lo if w > 0 else up) for w, lo, up in zip(weights, lower, upper, strict=True))
            margins.append(bias[label] - bias[other] + low)
    return margins


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(-33, 33), st.integers(1, 3))
def test_the_range_of_ibp_holds_its_exact_value(seed, exponent, depth):
    torch.manual_seed(seed)
    layers = [part for _ in range(depth) for part in (nn.Linear(6, 6), nn.ReLU())]
    network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(6, 3))
    with torch.no_grad():  # from 1e-10 to 1e10, and back in the last layer
        network[1].weight.mul_(2.0**exponent), network[1].bias.mul_(2.0**exponent)
        network[-1].weight.mul_(2.0**-exponent)
    x, y = torch.rand(2, 1, 2, 3), torch.tensor([0, 2])
    box = PixelBox(0.2 * torch.rand_like(x)).interval(x)
    low, high = FeedForwardVerifier().margin_range(network, box, y)
    for i, label in enumerate(y.tolist()):
        for computed_low, value, computed_high in zip(
            low[i].tolist(), exact_ibp(network, box.lower[i], box.upper[i], label), high[i].tolist(), strict=True
        ):
            assert Fraction(computed_low) <= value <= Fraction(computed_high)
            # the biases of later layers are not small where the first one's outputs are
            assert computed_high - computed_low <= 1e-4 * max(1, abs(float(value))) * 2.0 ** max(0, -exponent)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 0.1, 0.5]))
def test_enclosing_intervals_hold_the_exact_ones_where_relus_bend_at_an_end(seed, epsilon):
    network, y, box = bent_at_an_end(seed, epsilon)
    with torch.no_grad():
        graph = checked_graph(network, box.lower, weights_too=True)
        values = graph.enclose(box)
        center, radius = margin_interval(graph, values, y)
        highest = (center + radius + of_last(graph, values, y))[0, 1:]
    for value, bound in zip(exact_ibp(network, box.lower[0], box.upper[0], 0), highest.tolist(), strict=True):
        assert -Fraction(bound) <= value
        assert -Fraction(bound) >= value - Fraction(1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-6, 1e-3, 0.1]))
def test_enclosing_intervals_hold_those_in_float64(seed, size):
    network = RandomGraph(seed)
    x = torch.rand(4, *network.shape)
    box = PixelBox(size * torch.rand_like(x)).region(x)
    with torch.no_grad():
        graph = checked_graph(network, x, weights_too=True)
        assume(graph.rounding_known)
        values, plain = graph.enclose(box), graph.propagate(box)
        errors = RoundingErrors(graph, plain).errors
        precise = checked_graph(network.double(), x.double(), weights_too=True).propagate(box.map(torch.Tensor.double))
    for wide, narrow, error, float64 in zip(values, plain, errors, precise, strict=True):
        slack = 1e-12 * (1 + float64.size)
        assert (wide.center.double() - wide.radius.double() <= float64.lower + slack).all()
        assert (wide.center.double() + wide.radius.double() >= float64.upper - slack).all()
        assert (wide.radius - narrow.radius <= 4 * error + 1e-6 * narrow.size).all()


def scaled(network, factor):
    """The network with its first affine layer's outputs, so all hidden activations, times a factor; logits alike."""
    affine = [module for module in network if isinstance(module, (nn.Conv2d, nn.Linear))]
    norms = [module for module in network if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        if norms:  # which would undo the factor
            for module in norms:
                module.eps, module.running_var = 0.0, module.running_var.clone()
            norms[0].weight.mul_(factor), norms[0].bias.mul_(factor)
            for module in norms[1:]:
                module.running_mean.mul_(factor), module.running_var.mul_(factor).mul_(factor)
        else:
            affine[0].weight.mul_(factor), affine[0].bias.mul_(factor)
        affine[-1].weight.div_(factor)
        for module in affine[1:-1]:
            if not norms:
                module.bias.mul_(factor)
    return network


@settings(max_examples=20, deadline=None)
@given(networks, st.sampled_from([1e-3, 0.03, 0.5]), st.sampled_from(METHODS))
def test_no_point_in_float64_is_below_the_least_margin_of_the_range(network, size, method):
    x, y, budgets = random_case(network, size)
    low, high = FeedForwardVerifier(method).margin_range(network, PixelBox(budgets).interval(x), y)
    assert (low <= high).all()
    points = corners_and_points(x.double(), budgets.double(), 100)
    with torch.no_grad():
        logits = network.double()(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    margins = logits.gather(2, y.expand(len(points), -1)[..., None]) - logits
    for i, label in enumerate(y):
        others = [k for k in range(logits.shape[2]) if k != label]
        assert (low[i].double() <= margins[:, i, others].amin(0)).all()


def bent_at_an_end(seed, epsilon):
    """A network whose ReLUs bend at an end of their interval or close to it, a label, and a box."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(1, 1, 2, 3), torch.tensor([0])
    box = LinfBall(epsilon).interval(x)
    lower, upper = (end.flatten(1) for end in box)
    with torch.no_grad():
        for module in network[1:-1]:
            if isinstance(module, nn.ReLU):
                lower, upper = lower.clamp(min=0), upper.clamp(min=0)
                continue
            center = module((lower + upper) / 2)
            radius = (upper - lower) / 2 @ module.weight.abs().T
            shift = torch.where(torch.rand(8) < 0.7, -(center + radius)[0], (radius - center)[0])
            module.bias += shift + torch.randint(-2, 3, (8,)) * 1e-7
            lower, upper = center - radius + shift, center + radius + shift
    return network, y, box


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 0.1, 0.5]))
def test_the_range_holds_the_exact_value_where_relus_bend_at_an_end(seed, epsilon):
    network, y, box = bent_at_an_end(seed, epsilon)
    low, high = FeedForwardVerifier().margin_range(network, box, y)
    exact_margins = exact_ibp(network, box.lower[0], box.upper[0], 0)
    for computed_low, value, computed_high in zip(low[0].tolist(), exact_margins, high[0].tolist(), strict=True):
        assert Fraction(computed_low) <= value <= Fraction(computed_high)
    low, _ = FeedForwardVerifier("crown-ibp").margin_range(network, box, y)
    ends = torch.stack([box.lower, box.upper]).double()
    corners = torch.cartesian_prod(*[torch.tensor([0, 1])] * 6)
    points = torch.where(corners.view(-1, 1, 2, 3) == 1, ends[1], ends[0])
    logits = network.double()(points)
    assert (low.double() <= logits[:, :1] - logits[:, 1:]).all()


def test_a_relu_adds_no_error_where_it_is_linear_over_all_exact_inputs():
    h = Interval.between(torch.tensor([[-3.0, -1.0, 1.0, -1.0, 0.0]]), torch.tensor([[-1.0, -0.25, 3.0, 1.0, 2.0]]))
    errors, arithmetic = (torch.full((1, 5), 0.5),), Arithmetic(torch.float32, 1)
    error, row_error = ReLU().error((h,), errors, arithmetic), ReLU().row_error((h,), errors, arithmetic)
    torch.testing.assert_close(error, torch.tensor([[0.0, 0.25, 0.5, 0.5, 0.5]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(row_error, torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.5]]), rtol=0, atol=1e-5)
    assert error[0, 0] == row_error[0, 0] == row_error[0, 2] == 0


@pytest.mark.parametrize("factor", [1e-10, 1e-5, 1.0, 1e5, 1e10])
@pytest.mark.parametrize("method", METHODS)
def test_bounds_do_not_depend_on_the_scale_of_activations(factor, method):
    torch.manual_seed(0)

    def network():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.ReLU(),
            nn.Conv2d(3, 4, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 5),
            nn.ReLU(),
            nn.Linear(5, 3),
        )

    x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    box = LinfBall(0.05).interval(x)
    plain = FeedForwardVerifier(method).margins(network(), box, y)
    other = FeedForwardVerifier(method).margins(scaled(network(), factor), box, y)
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)


def test_a_wide_chord_covers_a_narrow_one_in_float64():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    x, y = torch.rand(50, 1, 2, 2).double(), torch.randint(3, (50,))
    for size in (1e-12, 1e-9, 1e-7, 1e-6, 1e-5):
        box = Box(x - size, x + size)
        bound = FeedForwardVerifier().cross_entropy(network, box, y)
        for point in (*box, x):
            loss = nn.functional.cross_entropy(network(point), y, reduction="none")
            assert (loss <= bound + 4e-16 * (1 + bound.abs())).all()


@pytest.mark.parametrize("verifier", [FeedForwardVerifier("tightest"), LirpaVerifier(method="crown-ibp")])
def test_every_verifier_gives_the_same_verdicts_away_from_zero(verifier):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    x = torch.rand(40, 1, 6, 6)
    y = network(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    for epsilon in (0.0, 0.01, 0.03):
        margins = verifier.margins(network, LinfBall(epsilon).interval(x), y)
        verdicts = certify(verifier, network, LinfBall(epsilon), x, y)
        clear = (margins.abs() > 1e-4).all(1)
        assert torch.equal(verdicts.certified[clear], (margins > 0).all(1)[clear])
        assert clear.sum() > 30
    assert 0 < verdicts.certified.sum() < 40


def test_a_float64_network_needs_no_second_look():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    x = torch.rand(5, 1, 2, 2).double()
    verdicts = certify(FeedForwardVerifier(), network, LinfBall(0.1), x, torch.zeros(5, dtype=torch.long))
    assert not verdicts.recomputed.any()


class Lowered(FeedForwardVerifier):
    """A verifier of somebody's own, built on ours."""

    def margins(self, network, box, y):
        return super().margins(network, box, y) - 1e9


def test_margins_that_a_subclass_gives_are_those_that_decide():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(5, 1, 2, 2)
    y = network(x).argmax(1)
    assert certify(FeedForwardVerifier(), network, LinfBall(0.0), x, y).certified.any()
    assert not certify(Lowered(), network, LinfBall(0.0), x, y).certified.any()
