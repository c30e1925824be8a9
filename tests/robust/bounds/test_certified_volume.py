"""The largest certified box: against the dual problem on linear networks, and what it promises on others."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from robust.bounds import FeedForwardVerifier, LargestCertifiedBox
from robust.errors import SettingError
from robust.threat_models import Box, PixelBox

PIXELS = 12
SHORT = {"steps": 100, "penalty_every": 20, "shrink": 0.95}


def linear(classes=4):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, classes)).double()
    x = torch.rand(5, 1, 3, 4, dtype=torch.double)
    return network, x, network(x).argmax(1)


def convolutional():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    x = torch.rand(6, 1, 8, 8)
    return network, x, network(x).argmax(1)


def margins_and_rates(network, x, y):
    """Of one example: the margins (K-1,), and how much each falls by a pixel's budget, (K-1, pixels)."""
    weight = network[1].weight.detach()
    others = [k for k in range(len(weight)) if k != y]
    logits = network(x[None])[0].detach()
    return (logits[y] - logits[others]).numpy(), (weight[y] - weight[others]).abs().numpy()


def solved(margins, rates, cap=np.inf):
    """The largest sum of log budgets, to 1e-6: between that of budgets that fit and the dual's at some multipliers.

    With multipliers m >= 0 of the margins, b = min(1 / (m rates), cap) maximises the Lagrangian sum log b + m (margins
    - rates b), an upper bound. The multipliers of margins that b exceeds grow, and those of the others shrink.
    """
    multipliers = np.full(len(margins), rates.shape[1] / margins.sum())
    for _ in range(200_000):
        b = np.minimum(1 / (multipliers @ rates), cap)
        used = rates @ b / margins
        lower = np.log(b / max(used.max(), 1)).sum()
        upper = np.log(b).sum() + multipliers @ (margins - rates @ b)
        if upper - lower < 1e-6:
            return upper
        multipliers = np.maximum(multipliers * used**0.5, 1e-300)
    raise AssertionError(f"the gap is still {upper - lower}")


@pytest.mark.thorough_but("settings3-0.1")
@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, 0.15),
        ({"optimizer": "sgd", "learning_rate": 1e-3}, 0.15),
        ({"optimizer": "sgd", "learning_rate": 1e-3, "gradient_clip": 20.0, "keep_best": False}, 0.4),
        ({"cap": 0.05}, 0.1),
    ],
)
def test_the_volume_is_the_largest_on_a_linear_network(settings, missing):
    network, x, y = linear()
    found = LargestCertifiedBox(slack=1e-6, **settings)(network, x, y)
    assert found.certified.all()
    for index in range(len(x)):
        margins, rates = margins_and_rates(network, x[index], y[index])
        largest = solved(margins, rates, settings.get("cap", np.inf))
        volume = found.budgets[index].log().sum().item()
        assert largest - missing < volume <= largest + 1e-6, "of 12 pixels together, in nats"
    if "cap" in settings:
        assert found.budgets.max().item() == pytest.approx(0.05)


def test_two_classes_have_a_closed_form():
    network, x, y = linear(classes=2)
    found = LargestCertifiedBox(slack=1e-6, optimizer="sgd", learning_rate=1e-3)(network, x, y)
    for index in range(len(x)):
        (margin,), (rates,) = margins_and_rates(network, x[index], y[index])
        expected = torch.from_numpy(margin / (PIXELS * rates)).view(1, 3, 4)
        small = expected < 0.5  # the largest ones converge last
        assert small.sum() > 6
        torch.testing.assert_close(found.budgets[index][small], expected[small], rtol=0.25, atol=0)
        volume = expected.log().sum()
        assert volume - 0.15 < found.budgets[index].log().sum() < volume + 1e-6


@pytest.mark.thorough
def test_one_budget_for_all_pixels():
    network, x, y = linear()
    budgets = LargestCertifiedBox(slack=1e-6, uniform=True)(network, x, y).budgets.flatten(1)
    assert (budgets == budgets[:, :1]).all()
    for index in range(len(x)):
        margins, rates = margins_and_rates(network, x[index], y[index])
        largest = (margins / rates.sum(1)).min()
        assert 0.99 * largest < budgets[index, 0].item() <= largest


def test_no_corner_of_the_box_flips_the_class_and_no_much_larger_box_is_certified():
    network, x, y = convolutional()
    found = LargestCertifiedBox(**SHORT)(network, x, y)
    assert found.certified.all()
    assert found.budgets.min() > 0
    for _ in range(200):
        corner = x + found.budgets * torch.where(torch.rand_like(x) < 0.5, -1.0, 1.0)
        assert torch.equal(network(corner).argmax(1), y)
    larger = Box(x - 1.2 * found.budgets, x + 1.2 * found.budgets)
    assert not (FeedForwardVerifier("crown-ibp").margins(network, larger, y) > 0).all(1).any()
    uniform = LargestCertifiedBox(**SHORT, uniform=True)(network, x, y).budgets
    assert (found.budgets.log().flatten(1).sum(1) > uniform.log().flatten(1).sum(1)).all()


@pytest.mark.thorough
def test_a_box_that_is_cut_to_images_may_be_larger():
    network, x, y = convolutional()
    x = (x > 0.5).float()  # half of every pixel's interval is outside
    y = network(x).argmax(1)
    cut = LargestCertifiedBox(**SHORT, cut=True, cap=1.0)(network, x, y)
    whole = LargestCertifiedBox(**SHORT, cap=1.0)(network, x, y)
    assert cut.certified.all()
    box = PixelBox(cut.budgets).interval(x)
    assert (FeedForwardVerifier("crown-ibp").margins(network, box, y) > 0).all()
    assert cut.budgets.log().mean() > whole.budgets.log().mean() + 0.3


@pytest.mark.thorough
def test_the_best_on_the_way_is_kept_where_the_last_is_smaller():
    network, x, y = linear()
    last, best = (
        LargestCertifiedBox(keep_best=keep)(network, x, y).budgets.log().sum((1, 2, 3)) for keep in (False, True)
    )
    assert (best >= last).all()
    assert (best > last + 1).any()


def test_misclassified_examples_have_no_box_and_examples_do_not_depend_on_each_other():
    network, x, y = convolutional()
    y = torch.where(torch.arange(6) % 2 == 0, y, (y + 1) % 3)
    found = LargestCertifiedBox(steps=20)(network, x, y)
    assert found.certified.tolist() == [True, False] * 3
    assert (found.budgets[1::2] == 0).all()
    alone = LargestCertifiedBox(steps=20)(network, x[4:5], y[4:5])
    torch.testing.assert_close(alone.budgets, found.budgets[4:5], rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.thorough
def test_the_published_rate_cannot_reach_large_budgets():
    network, x, y = linear()
    network[1].weight.data[:, :3] = 0  # these pixels decide nothing
    y = network(x).argmax(1)
    for rate in (1e-4, 1e-3):
        settings = {"optimizer": "sgd", "learning_rate": rate, "slack": 0.0}
        budgets = LargestCertifiedBox(**settings)(network, x, y).budgets.flatten(1)
        assert 0.95 < budgets[:, :3].max().item() / (1e-3 + 4 * rate * 400) < 1.05


def test_what_an_optimizer_that_diverges_leaves_is_shrunk_or_not_certified():
    network, x, y = convolutional()
    wild = {"optimizer": "sgd", "learning_rate": 0.5, "steps": 10, "keep_best": False}
    given_up = LargestCertifiedBox(**wild, max_shrinks=2)(network, x, y)
    assert not given_up.certified.any()
    assert (given_up.budgets == 0).all()
    too_far = {"learning_rate": 0.3, "steps": 5, "keep_best": False}
    assert not LargestCertifiedBox(**too_far, max_shrinks=0)(network, x, y).certified.any()
    shrunk = LargestCertifiedBox(**too_far, shrink=0.5)(network, x, y)
    assert shrunk.certified.all()
    good = shrunk.certified
    box = Box((x - shrunk.budgets)[good], (x + shrunk.budgets)[good])
    assert (FeedForwardVerifier("crown-ibp").margins(network, box, y[good]) > 0).all()


def test_the_slack_is_left_and_steps_are_told_under_inference_mode():
    network, x, y = convolutional()
    told = []
    with torch.inference_mode():
        found = LargestCertifiedBox(steps=7, slack=0.01)(network, x, y, lambda: told.append(1))
    assert len(told) == 7
    box = Box(x - found.budgets, x + found.budgets)
    least = FeedForwardVerifier("crown-ibp").margins(network, box, y).amin(1)
    assert (least[found.certified] > 0.01).all()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0), ("dual_every", 0), ("penalty_every", 0), ("optimizer", "lion"), ("learning_rate", 0.0),
        ("initial", 0.0), ("slack", -1.0), ("penalty", 0.0), ("penalty_growth", 0.5), ("gradient_clip", 0.0),
        ("cap", 1e-4), ("shrink", 1.0), ("max_shrinks", -1), ("learning_rate", math.nan),
    ],
)  # fmt: skip
def test_wrong_settings(setting, value):
    with pytest.raises(SettingError, match=rf"^{setting}: got"):
        LargestCertifiedBox(**{setting: value})
