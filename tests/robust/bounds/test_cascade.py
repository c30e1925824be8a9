"""Verdicts by few bounds equal those by all margins, also where rounding decides; and they are by few bounds."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.bounds import FeedForwardVerifier, LirpaVerifier, certify
from robust.bounds.agreement import checked_graph
from robust.bounds.graph import Graph
from robust.bounds.rounding import RoundingErrors
from robust.networks import DMSmall
from robust.threat_models import L2Ball, LinfBall, PixelBox
from tests.random_graphs import RandomGraph
from tests.random_networks import networks, random_case

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
METHODS = ("ibp", "crown-ibp", "tightest", "crown")


def both(verifier, network, threat_model, x, y, safe=True):
    """The verdicts by all margins, and those without."""
    return [certify(verifier, network, threat_model, x, y, rounding_safe=safe, margins=each) for each in (True, False)]


def at_zero(network, method, threat_model, x, y):
    """Shift the label's logit so that the first image's lowest bound is 0 up to rounding."""
    with torch.no_grad():
        margins = FeedForwardVerifier(method).margins(network, threat_model.interval(x), y)
        network[-1].bias[y[0]] -= margins[0].amin()


@settings(max_examples=15, deadline=None)
@given(networks, st.sampled_from([1e-3, 0.03, 0.2]), st.sampled_from(METHODS), st.booleans(), st.booleans())
def test_verdicts_are_those_by_all_margins(network, size, method, safe, near):
    x, y, budgets = random_case(network, size, batch=12)
    threat_model = PixelBox(budgets)
    with torch.no_grad():
        y = torch.where(torch.rand(12) < 0.8, network(x).argmax(1), y)
        if near:
            at_zero(network, method, threat_model, x, y)
    whole, few = both(FeedForwardVerifier(method), network, threat_model, x, y, safe)
    assert whole.margins is not None
    if not near or (safe and method != "crown"):  # else sums in another order decide, whose rounding is not bounded
        assert torch.equal(few.certified, whole.certified)
    if method != "crown":
        assert torch.equal(few.recomputed, whole.recomputed)
    alone = certify(FeedForwardVerifier(method, memory=1), network, threat_model, x, y, rounding_safe=safe)
    if not near:
        assert torch.equal(alone.certified, few.certified)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 0.03]), st.sampled_from(["ibp", "crown-ibp", "tightest"]))
def test_verdicts_on_graphs_are_those_by_all_margins(seed, size, method):
    network = RandomGraph(seed)
    x = torch.rand(6, *network.shape)
    y = network(x).argmax(1)
    whole, few = both(FeedForwardVerifier(method), network, PixelBox(size * torch.rand_like(x)), x, y)
    assert torch.equal(few.certified, whole.certified)
    assert torch.equal(few.recomputed, whole.recomputed)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 0.1]), st.booleans())
def test_errors_of_selected_images_are_those_of_all(seed, size, box):
    network = RandomGraph(seed)
    x, images = torch.rand(5, *network.shape), torch.tensor([3, 1])
    region = (PixelBox(size * torch.rand_like(x)) if box else L2Ball(10 * size)).region(x)
    with torch.no_grad():
        errors = RoundingErrors(graph := checked_graph(network, x, weights_too=True), graph.propagate(region))
    chosen = errors.select(images)
    pairs = [
        *zip(chosen.errors, errors.errors, strict=True),
        *zip(chosen.row_weights(), errors.row_weights(), strict=True),
    ]
    for some, of_all in pairs:
        assert (some is None) is (of_all is None)
        assert some is None or torch.allclose(some, of_all[images], rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_float64_networks_have_the_same_verdicts(method):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.rand(20, 1, 2, 2)
    y = network(x.double()).argmax(1)
    for images in (x, x.double()):
        whole, few = both(FeedForwardVerifier(method), network, LinfBall(0.02), images, y)
        assert torch.equal(whole.certified, few.certified)
        assert few.certified.sum() > 0
        assert not few.recomputed.any()


def test_only_images_and_rows_that_intervals_leave_open_have_linear_bounds():
    torch.manual_seed(0)
    network, x = DMSmall((1, 12, 12), num_classes=10), torch.rand(30, 1, 12, 12)
    y, rows, bound = network(x).argmax(1), [], Graph._upper_bound
    y[:10] = (y[:10] + 1) % 10  # these are refused by their logits

    def counting(self, values, A, *args):
        rows.append(A.shape[0] * A.shape[1])
        return bound(self, values, A, *args)

    with patch.object(Graph, "_upper_bound", counting):
        for epsilon, most in ((0.0, 0), (0.001, 60), (0.3, 30)):  # easy; in between; the first row refuses
            rows.clear()
            verdicts = certify(FeedForwardVerifier("tightest"), network, LinfBall(epsilon), x, y, margins=False)
            assert sum(rows) <= most
            assert verdicts.margins is None
            assert not verdicts.certified[:10].any()
            assert bool(verdicts.certified[10:].all()) is (epsilon < 0.3)


class Lowered(FeedForwardVerifier):
    """A verifier of somebody's own, built on ours."""

    def margins(self, network, box, y):
        return super().margins(network, box, y) - 1e9


@pytest.mark.parametrize("verifier", [Lowered(), LirpaVerifier()])
def test_verifiers_that_cannot_decide_otherwise_give_margins(verifier):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(5, 1, 2, 2)
    y = network(x).argmax(1)
    whole, few = both(verifier, network, LinfBall(1e-3), x, y)
    assert torch.equal(whole.certified, few.certified)
    assert torch.equal(whole.margins, few.margins)
    assert few.certified.any() != isinstance(verifier, Lowered)


def test_networks_whose_rounding_is_not_known_are_bounded_whole():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    x = torch.rand(5, 1, 2, 2)
    y = network(x).argmax(1)
    whole, few = both(FeedForwardVerifier("tightest"), network, LinfBall(1e-3), x, y)
    assert torch.equal(whole.certified, few.certified)
    assert few.margins is not None
