"""The own verifier: exact against a plain reference, sound against sampled and attacked points, right gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, certify
from robust.errors import SettingError, UnsupportedLayerError
from robust.networks import DMSmall
from robust.threat_models import LinfBall, PixelBox
from tests.plain_bounds import plain_bounds
from tests.random_networks import corners_and_points, networks, random_case

sizes = st.sampled_from([0.0, 1e-3, 0.03, 0.1, 0.5, 1.0])
METHODS = ("ibp", "crown-ibp", "tightest")


@settings(max_examples=30, deadline=None)
@given(networks, sizes)
def test_equals_the_plain_reference(network, size):
    network = network.double()
    x, y, budgets = (t.double() if t.is_floating_point() else t for t in random_case(network, size))
    box = PixelBox(budgets).interval(x)
    ibp, crown, fused_ibp, fused_crown = plain_bounds(network, box, y)
    verifier = FeedForwardVerifier
    torch.testing.assert_close(verifier("ibp").margins(network, box, y), ibp, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(verifier("crown-ibp").margins(network, box, y), crown, rtol=1e-7, atol=1e-7)
    tightest = torch.maximum(ibp, crown)
    torch.testing.assert_close(verifier("tightest").margins(network, box, y), tightest, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(verifier().cross_entropy(network, box, y, 0.0), fused_ibp, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(verifier().cross_entropy(network, box, y, 1.0), fused_crown, rtol=1e-5, atol=1e-5)
    mixed = (0.3 * fused_crown.exp() + 0.7 * fused_ibp.exp()).log()
    torch.testing.assert_close(verifier().cross_entropy(network, box, y, 0.3), mixed, rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(networks, sizes, st.sampled_from([0.0, 0.5, 1.0]))
def test_no_sampled_or_attacked_point_crosses_a_bound(network, size, crown_weight):
    x, y, budgets = random_case(network, size)
    box = PixelBox(budgets).interval(x)
    attacked = PGD(steps=10, restarts=2)(network, PixelBox(budgets), x, y)
    points = torch.cat([corners_and_points(x, budgets, 100), attacked[None]])
    with torch.no_grad():
        logits = network(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(points)), reduction="none").view(len(points), -1)
        bound = FeedForwardVerifier().cross_entropy(network, box, y, crown_weight)
        assert (loss <= bound + 1e-4 * (1 + bound.abs())).all()
        margins = logits.gather(2, y.expand(len(points), -1)[..., None]) - logits
        for method in METHODS:
            lowest = FeedForwardVerifier(method).margins(network, box, y)
            for i, label in enumerate(y):
                reached = margins[:, i, [k for k in range(logits.shape[2]) if k != label]].amin(0)
                assert (lowest[i] <= reached + 1e-4 * (1 + reached.abs())).all()


@settings(max_examples=20, deadline=None)
@given(networks)
def test_a_point_has_the_margins_and_the_loss_of_the_network(network):
    x, y, _ = random_case(network, 0.0)
    logits = network(x)
    others = torch.ones_like(logits).scatter(1, y[:, None], 0).bool()
    exact = (logits.gather(1, y[:, None]) - logits)[others].view(len(x), -1)
    for method in METHODS:
        bound = FeedForwardVerifier(method).margins(network, LinfBall(0.0).interval(x), y)
        torch.testing.assert_close(bound, exact, rtol=1e-4, atol=1e-4)
    loss = F.cross_entropy(logits, y, reduction="none")
    fused = FeedForwardVerifier().cross_entropy(network, LinfBall(0.0).interval(x), y)
    torch.testing.assert_close(fused, loss, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough_but("2-0.4")
@pytest.mark.parametrize("crown_weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_gradients_agree_with_finite_differences(crown_weight, channels):
    torch.manual_seed(channels)
    network = nn.Sequential(
        nn.Conv2d(channels, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AvgPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )
    network = network.double().eval()
    x, y = torch.rand(2, channels, 5, 5).double(), torch.tensor([0, 3])
    budgets = (0.02 + 0.2 * torch.rand_like(x)).requires_grad_()

    def loss(budgets, *weights):
        for parameter, weight in zip(network.parameters(), weights, strict=True):
            assert parameter is weight
        return FeedForwardVerifier().cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight)

    assert torch.autograd.gradcheck(loss, (budgets, *network.parameters()), eps=1e-7, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("method", METHODS)
def test_margin_gradients_agree_with_finite_differences(method):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
    x, y = torch.rand(2, 1, 4, 4).double(), torch.tensor([0, 2])
    budgets = (0.05 + 0.1 * torch.rand_like(x)).requires_grad_()

    def margins(budgets):
        return FeedForwardVerifier(method).margins(network, PixelBox(budgets).interval(x), y)

    assert torch.autograd.gradcheck(margins, (budgets,), eps=1e-7, atol=1e-5, fast_mode=True)


def test_larger_budgets_never_lower_the_loss():
    torch.manual_seed(0)
    network, x, y = DMSmall((1, 12, 12)), torch.rand(4, 1, 12, 12), torch.arange(4)
    for crown_weight in (0.0, 1.0):
        budgets = torch.full_like(x, 0.05).requires_grad_()
        FeedForwardVerifier().cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight).sum().backward()
        assert (budgets.grad >= -1e-6 * budgets.grad.abs().max()).all()
        assert (budgets.grad > 0).float().mean() > 0.9


def test_bounds_run_in_float32_under_autocast():
    torch.manual_seed(0)
    network, x, y = DMSmall((1, 12, 12)), torch.rand(4, 1, 12, 12), torch.arange(4)
    box = LinfBall(0.1).interval(x)
    for method in METHODS:
        plain = FeedForwardVerifier(method).margins(network, box, y)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(FeedForwardVerifier(method).margins(network, box, y), plain)
            assert FeedForwardVerifier().cross_entropy(network, box, y).dtype == torch.float32


def test_half_precision_weights_are_refused():
    network, x = DMSmall((1, 12, 12)).bfloat16(), torch.rand(1, 1, 12, 12)
    with pytest.raises(SettingError, match=r"^network: got .*bounds need float32 weights"):
        FeedForwardVerifier().margins(network, LinfBall(0.1).interval(x), torch.tensor([0]))


def test_batch_norm_uses_evaluation_statistics_in_training_mode():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    network[1].running_mean.fill_(0.3)
    box, y = LinfBall(0.1).interval(torch.rand(2, 1, 6, 6)), torch.tensor([0, 1])
    expected = FeedForwardVerifier().margins(network.eval(), box, y)
    assert torch.equal(FeedForwardVerifier().margins(network.train(), box, y), expected)
    assert network[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.LogSigmoid(), nn.Linear(4, 2)), "layer '2'.*LogSigmoid"),
        (nn.Sequential(nn.Sequential(nn.LPPool2d(2, 2)), nn.Flatten(), nn.Linear(4, 2)), "layer '0.0'.*LPPool2d"),
    ],
)
def test_an_unsupported_layer_is_named_with_the_other_verifier(network, named):
    box = LinfBall(0.1).interval(torch.rand(1, 1, 4, 4))
    with pytest.raises(UnsupportedLayerError, match=f"{named}.*LirpaVerifier"):
        FeedForwardVerifier().margins(network, box, torch.tensor([0]))


def test_a_network_without_logits_is_refused():
    box = LinfBall(0.1).interval(torch.rand(1, 1, 4, 4))
    with pytest.raises(SettingError, match=r"network: got 'output of shape \(2, 1, 4, 4\)'; give logits"):
        FeedForwardVerifier().margins(nn.Sequential(), box, torch.tensor([0]))


def test_unknown_method():
    with pytest.raises(SettingError, match="method: got 'alpha'; give ibp, crown-ibp, tightest or crown"):
        FeedForwardVerifier("alpha")


def test_a_forward_pass_that_moves_statistics_before_the_backward_pass_changes_no_gradient():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).train()
    x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    gradients = []
    for moved in (False, True):
        loss = FeedForwardVerifier().cross_entropy(network, LinfBall(0.1).interval(x), y).sum()
        if moved:
            network(10 * x)
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_bounds_ignore_lower_precision_of_products_and_leave_its_setting():
    torch.manual_seed(0)
    network, x, y = DMSmall((1, 12, 12)), torch.rand(4, 1, 12, 12), torch.arange(4)
    box = LinfBall(0.1).interval(x)
    plain = FeedForwardVerifier("tightest").margins(network, box, y)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(FeedForwardVerifier("tightest").margins(network, box, y), plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_have_any_integer_type(dtype):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    box = LinfBall(0.1).interval(x)
    for method in ("ibp", "crown-ibp", "tightest"):
        verifier = FeedForwardVerifier(method)
        for call in ("margins", "cross_entropy"):
            given = getattr(verifier, call)(network, box, y.to(dtype))
            assert torch.equal(given, getattr(verifier, call)(network, box, y))
        assert torch.equal(
            certify(verifier, network, LinfBall(0.1), x, y.to(dtype)).certified,
            certify(verifier, network, LinfBall(0.1), x, y).certified,
        )
