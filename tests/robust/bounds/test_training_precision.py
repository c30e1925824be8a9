"""Losses in less precision stay near those in float32; margins and verdicts do not change."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robust.bounds import FeedForwardVerifier, certify, verifier
from robust.errors import SettingError
from robust.networks import DMSmall, ResNetB
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox
from tests.random_graphs import ACTIVATIONS, RandomGraph
from tests.random_networks import networks, random_case

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same.")
PRECISIONS = ["tf32", "bfloat16"]


def loss_and_gradients(network, x, y, budgets, precision, crown_weight):
    network.zero_grad()
    verifier = FeedForwardVerifier(training_precision=precision)
    budgets = budgets.clone().requires_grad_()
    loss = verifier.cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    gradients = [budgets.grad, *(weight.grad for weight in network.parameters() if weight.grad is not None)]
    return loss.detach(), [each.clone() for each in gradients]


def assert_near(network, x, y, budgets, precision, crown_weight):
    exact, expected = loss_and_gradients(network, x, y, budgets, "float32", crown_weight)
    rounded, gradients = loss_and_gradients(network, x, y, budgets, precision, crown_weight)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    return gradients, expected


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=15, deadline=None)
@given(networks, st.sampled_from([0.0, 0.5, 1.0]))
def test_the_loss_of_random_networks_is_near(precision, network, crown_weight):
    x, y, budgets = random_case(network, 0.1)
    gradients, _ = assert_near(network, x, y, budgets, precision, crown_weight)
    assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("crown_weight", [0.0, 0.5])
def test_that_of_a_network_of_the_zoo_is_near(precision, crown_weight):
    network = DMSmall((1, 28, 28))
    x, y = torch.rand(8, 1, 28, 28), torch.randint(10, (8,))
    gradients, expected = assert_near(network, x, y, 0.02 * torch.rand_like(x), precision, crown_weight)
    for there, here in zip(gradients, expected, strict=True):  # of a few units that end next to 0, the gradient jumps
        assert (there - here).norm() <= 0.2 * here.norm()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.5]))
def test_every_operation_has_a_loss_and_finite_gradients(seed, crown_weight):
    network = RandomGraph(seed, tuple(ACTIVATIONS)).eval()
    x, y = torch.rand(3, *network.shape), torch.randint(network.last.out_features, (3,))
    budgets = (0.01 * torch.rand_like(x)).requires_grad_()
    verifier = FeedForwardVerifier(training_precision="bfloat16")
    loss = verifier.cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight)
    loss.mean().backward()
    assert loss.isfinite().all()
    assert budgets.grad.isfinite().all()


@pytest.mark.parametrize("ball", [L2Ball(0.1), L1Ball(0.1)])
def test_that_of_a_ball_is_near(ball):
    network = ResNetB((1, 8, 8), width=2)
    x, y = torch.rand(3, 1, 8, 8), torch.randint(10, (3,))
    exact = FeedForwardVerifier().cross_entropy(network, ball.region(x), y, 0.5)
    rounded = FeedForwardVerifier(training_precision="bfloat16").cross_entropy(network, ball.region(x), y, 0.5)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_margins_and_verdicts_are_those_of_float32(precision):
    network = DMSmall((1, 28, 28))
    x, y = torch.rand(8, 1, 28, 28), torch.randint(10, (8,))
    for method in ("ibp", "crown-ibp", "tightest"):
        usual, lower = FeedForwardVerifier(method), FeedForwardVerifier(method, training_precision=precision)
        box = LinfBall(0.01).interval(x)
        assert torch.equal(lower.margins(network, box, y), usual.margins(network, box, y))
        one, other = (certify(verifier, network, LinfBall(0.01), x, y) for verifier in (usual, lower))
        assert torch.equal(one.certified, other.certified)


def test_another_precision_is_an_error():
    with pytest.raises(SettingError, match=r"^training_precision: got 'float16'; give float32, tf32 or bfloat16"):
        FeedForwardVerifier(training_precision="float16")


@pytest.mark.parametrize(
    ("has_instructions", "precision", "warned"),
    [
        (False, "bfloat16", True),
        (True, "bfloat16", False),
        (False, "float32", False),
    ],
)
def test_bf16_on_a_processor_without_instructions_warns(monkeypatch, has_instructions, precision, warned):
    monkeypatch.setattr(verifier, "has_fast_bfloat16", lambda: has_instructions)
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FeedForwardVerifier(training_precision=precision).cross_entropy(network, PixelBox(0.1 * x).interval(x), y)
    found = [each for each in caught if "many times slower than float32 on this processor" in str(each.message)]
    assert [each.filename for each in found] == ([__file__] if warned else [])


def test_this_processor_is_asked():
    assert verifier.has_fast_bfloat16() in (True, False)
