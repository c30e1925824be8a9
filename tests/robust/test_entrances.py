"""Errors of the library where something of another kind enters: each names the argument, its value and the remedy."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, LirpaVerifier
from robust.budgets import LearnedBudgets, relative_budgets
from robust.errors import InvalidAttackError, SettingError
from robust.evaluation import checked_attack
from robust.threat_models import LinfBall, PixelBox

X = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4) % 2
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
BALL = LinfBall(0.1)


class Pair(nn.Module):
    """Returns logits and something else."""

    def forward(self, x):
        return x.flatten(1)[:, :2], x


class Out(nn.Module):
    """A generator without a sigmoid."""

    def forward(self, x):
        return 4 * x - 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PGD(1)(Pair(), BALL, X, Y), "network: got 'a tuple as output'; give a network that returns logits"),
        (lambda: PGD(1)(lambda x: x.flatten(1), BALL, X, Y), "network: got 'function'; give an nn.Module"),
        (lambda: PGD(1)(NETWORK, BALL, X, [0, 1, 0, 1]), "labels: got 'list'; give a tensor"),
        (lambda: FeedForwardVerifier().margins(NETWORK, BALL.interval(X), [0, 1]), "labels: got 'list'; give a tensor"),
        (lambda: FeedForwardVerifier().cross_entropy(NETWORK, BALL, Y), "box: got 'LinfBall'; give the box or ball"),
        (lambda: LirpaVerifier().margins(NETWORK, BALL, Y), "box: got 'LinfBall'; give the box or ball"),
        (lambda: PixelBox(torch.rand(4)), "budgets: got (4,); give one number, or (B, C, H, W); of each example:"),
        (lambda: LearnedBudgets(Out())(X, 0.1), "generator: got 'outputs from -"),
        (lambda: relative_budgets(4 * X - 2, 0.1, 0.5, 2.0), "generator: got 'outputs from -"),
        (
            lambda: relative_budgets(X * torch.nan, 0.1, 0.5, 2.0),
            "generator: got 'outputs from nan to nan'; its weights",
        ),
        (lambda: relative_budgets(X, 0.1, 1.5, 2.0), "alpha_low: got 1.5; give a value in (0, 1]"),
        (lambda: relative_budgets(X, 8.0, 0.5, 2.0), "epsilon: got 8.0; give epsilon0 in (0, 1]"),
        (lambda: relative_budgets(X, 0.1, 0.5, 0.8), "alpha_high: got 0.8; give a value of at least 1"),
    ],
)
def test_what_is_of_another_kind_is_named(call, message):
    with pytest.raises(SettingError, match=f"^{re.escape(message)}"):
        call()


def test_budgets_of_each_example_are_a_view():
    """Regression: those of 4 images of width 4 were taken for those of the columns."""
    box = PixelBox(torch.arange(4.0).view(-1, 1, 1, 1) / 8).interval(torch.full_like(X, 0.5))
    assert (box.upper - 0.5).amax((1, 2, 3)).tolist() == [0.0, 0.125, 0.25, 0.375]
    assert PixelBox(torch.tensor(0.1)).interval(X).upper.shape == X.shape


def test_rounding_may_leave_the_range():
    assert torch.isfinite(relative_budgets(X * (1 + 1e-7) + (1 - X.max()), 0.1, 0.5, 2.0)).all()
    assert PixelBox(torch.tensor([0.1])).interval(X).upper.shape == X.shape


def step(network, threat_model, x, y):
    """One step along the sign of a gradient, which needs a graph."""
    x_adv = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(x_adv), y), x_adv)
    return threat_model.project(x + gradient.sign(), x)


def small(network, threat_model, x, y):
    return x[..., :2]


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (
            step,
            "step asks for a gradient of a loss that has none; evaluations run without gradients; compute the loss ",
        ),
        (small, "small gave images of shape (4, 1, 4, 2); return images of shape (4, 1, 4, 4)"),
    ],
)
def test_an_attack_of_ones_own_is_told_what_to_do(attack, message):
    with torch.no_grad(), pytest.raises(InvalidAttackError, match=re.escape(f"invalid attack mine: {message}")):
        checked_attack("mine", attack, NETWORK, BALL, X, Y)


def test_with_gradients_it_works():
    with torch.enable_grad():
        assert BALL.contains(checked_attack("mine", step, NETWORK, BALL, X, Y), X).all()
