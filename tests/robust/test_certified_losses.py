"""Losses between an attack's and a bound's, against plain formulas in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, clean_statistics, in_place_of_running
from robust.certified_losses import CCIBP, MTLIBP, SABR, small_box
from robust.errors import SettingError
from robust.passes import PassCounter
from robust.threat_models import Box, LinfBall, PixelBox

ATTACK = PGD(5, start="clean")
WEIGHTS = st.floats(0, 1)


def case(seed, classes=4, dtype=torch.double):
    """A small network, three images, labels, and budgets of which some are cut by [0, 1]."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, classes)).to(dtype)
    x, y = torch.rand(3, 1, 4, 4, dtype=dtype), torch.randint(classes, (3,))
    return network, x, y, 0.2 * torch.rand_like(x)


def normalised():
    """A network with batch normalisation, images, labels, and its statistics of them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    x, y = torch.rand(8, 1, 4, 4), torch.randint(4, (8,))
    with clean_statistics(network) as statistics:
        network(x)
    return network, x, y, statistics


def intervals(network, lower, upper):
    """Plain interval arithmetic: the upper bounds of z_k - z_y need the last layer's rows merged."""
    conv, _, _, linear = network
    center, radius = conv((lower + upper) / 2), F.conv2d((upper - lower) / 2, conv.weight.abs())
    low, high = (center - radius).relu().flatten(1), (center + radius).relu().flatten(1)
    return linear, low, high


def highest_differences(network, lower, upper, y):
    linear, low, high = intervals(network, lower, upper)
    rows = linear.weight[None] - linear.weight[y][:, None]
    bias = linear.bias[None] - linear.bias[y][:, None]
    return (rows.clamp(min=0) * high[:, None] + rows.clamp(max=0) * low[:, None]).sum(2) + bias


def loss_of(kind, weight, network, x, y, budgets):
    return kind(weight, ATTACK)(network, FeedForwardVerifier(), PixelBox(budgets), x, y, crown_weight=0.0)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), WEIGHTS)
def test_losses_are_their_formulas(seed, weight):
    network, x, y, budgets = case(seed)
    lower, upper = PixelBox(budgets).interval(x)
    x_adv = ATTACK(network, PixelBox(budgets), x, y)
    logits, bounds = network(x_adv), highest_differences(network, lower, upper, y)
    differences = logits - logits.gather(1, y[:, None])
    mean = (1 - weight) * F.cross_entropy(logits, y, reduction="none") + weight * bounds.logsumexp(1)
    torch.testing.assert_close(loss_of(MTLIBP, weight, network, x, y, budgets), mean)
    combined = ((1 - weight) * differences + weight * bounds).logsumexp(1)
    torch.testing.assert_close(loss_of(CCIBP, weight, network, x, y, budgets), combined)
    half = weight * (upper - lower) / 2
    center = torch.minimum(torch.maximum(x_adv, lower + half), upper - half)
    small = highest_differences(network, center - half, center + half, y).logsumexp(1)
    torch.testing.assert_close(loss_of(SABR, weight, network, x, y, budgets), small)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), WEIGHTS)
def test_losses_lie_between_the_attacks_and_the_bounds(seed, weight):
    network, x, y, budgets = case(seed)
    lowest, highest = (loss_of(MTLIBP, end, network, x, y, budgets) for end in (0.0, 1.0))
    mtl, cc, sabr = (loss_of(kind, weight, network, x, y, budgets) for kind in (MTLIBP, CCIBP, SABR))
    assert (lowest <= highest + 1e-9).all()
    assert ((lowest - 1e-9 <= mtl) & (mtl <= highest + 1e-9)).all()
    assert (cc <= mtl + 1e-9).all()
    assert (sabr <= highest + 1e-9).all()
    for kind in (CCIBP, SABR):  # MTL-IBP is where they end
        torch.testing.assert_close(loss_of(kind, 1.0, network, x, y, budgets), highest)
        torch.testing.assert_close(loss_of(kind, 0.0, network, x, y, budgets), lowest)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), WEIGHTS)
def test_the_small_box_lies_in_the_box(seed, weight):
    torch.manual_seed(seed)
    lower, position = torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    box = Box(lower, lower + 0.5 * torch.rand_like(lower))
    small = small_box(box, position, weight)
    assert (small.lower >= box.lower).all()
    assert (small.upper <= box.upper).all()
    assert (small.upper >= small.lower).all()
    torch.testing.assert_close(small.upper - small.lower, weight * (box.upper - box.lower), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [SABR, MTLIBP, CCIBP])
def test_learned_budgets_have_a_gradient_from_both_parts(kind):
    network, x, y, budgets = case(3)
    network[0].bias.data += 0.5  # most of its ReLUs are on
    x, budgets = 0.3 + 0.4 * x, budgets.clone().requires_grad_()  # not cut
    for weight in (0.0, 0.5, 1.0):
        (gradient,) = torch.autograd.grad(loss_of(kind, weight, network, x, y, budgets).sum(), budgets)
        assert (gradient != 0).float().mean() > 0.5
        assert gradient.sum() > 0  # larger budgets raise the loss


@pytest.mark.parametrize("kind", [SABR, MTLIBP, CCIBP])
def test_clean_statistics_normalise_both_parts(kind):
    network, x, y, statistics = normalised()
    moved = network[1].running_mean.clone()
    with in_place_of_running(statistics):
        loss = kind(0.5)(network, FeedForwardVerifier(), LinfBall(0.1), x, y, crown_weight=0.0)
        assert network[1].running_mean.requires_grad  # as it was
    loss.sum().backward()
    assert network.training
    assert torch.equal(network[1].running_mean, moved)  # neither the attack nor the pass at its images moves it
    assert network[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [SABR, MTLIBP, CCIBP])
def test_an_attack_in_training_mode_moves_no_statistics_of_the_bounds(kind):
    network, x, y, statistics = normalised()
    mean = statistics[network[1]][0].detach().clone()
    with in_place_of_running(statistics):
        kind(0.5, PGD(3, mode="keep"))(network, FeedForwardVerifier(), LinfBall(0.1), x, y, crown_weight=0.0)
    assert torch.equal(statistics[network[1]][0], mean)


@pytest.mark.parametrize("kind", [SABR, MTLIBP, CCIBP])
def test_statistics_under_autocast_are_those_of_the_layers_precision(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    x, y = torch.rand(8, 1, 4, 4), torch.randint(4, (8,))
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            with clean_statistics(network) as statistics:
                network(x)
            with in_place_of_running(statistics):
                loss = kind(0.5, ATTACK)(network, FeedForwardVerifier(), LinfBall(0.1), x, y, crown_weight=0.0)
        losses.append(loss.detach().float())
    torch.testing.assert_close(losses[1], losses[0], atol=0.1, rtol=0.05)


@pytest.mark.parametrize(("kind", "images"), [(SABR, 0), (MTLIBP, 1), (CCIBP, 1)])
def test_attack_and_bounds_are_counted(kind, images):
    network, x, y, budgets = case(0)
    counter = PassCounter({"classifier": network})
    counter.start()
    try:
        loss_of(kind, 0.5, network, x, y, budgets).sum().backward()
    finally:
        counter.detach()
    attack, bound = 5, 2
    assert counter.forward["classifier"] == 3 * (attack + images + bound)  # of three images
    assert counter.backward["classifier"] == 3 * (attack + images + bound)


@pytest.mark.parametrize("kind", [SABR, MTLIBP, CCIBP])
def test_a_wrong_weight_is_refused(kind):
    with pytest.raises(SettingError, match=r"^weight: got 1\.5; give a weight of the bound in \[0, 1\]"):
        kind(1.5)
