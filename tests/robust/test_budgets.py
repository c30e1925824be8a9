"""Contextual budgets: exact volume and range, and what the refinement must leave alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robust.budgets import check_budget_range, relative_budgets
from robust.errors import SettingError
from robust.networks import BudgetGenerator

ranges = st.tuples(
    st.sampled_from([1e-3, 8 / 255, 0.3, 0.4, 0.6, 0.8, 0.99, 1.0]),
    st.sampled_from([0.0625, 0.125, 0.5, 0.9, 1.0]),
    st.sampled_from([1.0, 1.2, 2.0, 2.5, 100.0]),
)


@settings(max_examples=200, deadline=None)
@given(ranges, st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 5.0, 20.0]), st.sampled_from([-10.0, 0.0, 10.0]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_volume_and_range_are_exact(dtype, setting, seed, spread, offset):
    epsilon, low, high = setting
    logits = offset + spread * torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    budgets = epsilon * relative_budgets(torch.sigmoid(logits).to(dtype), epsilon, low, high)
    double = budgets.double()
    n, target = 784, 784 * math.log(epsilon)
    error = (double.log().flatten(1).sum(1) - target).abs() / max(abs(target), n * abs(math.log(0.9)))
    assert error.max() < (1e-5 if dtype == torch.float32 else 1e-12)
    assert double.min() >= low * epsilon - 1e-6
    assert double.max() <= min(high * epsilon, 1) + 1e-6


@settings(deadline=None)
@given(ranges, st.floats(0, 1))
def test_constant_outputs_give_uniform_budgets(setting, output):
    epsilon, low, high = setting
    budgets = relative_budgets(torch.full((2, 1, 4, 4), output, dtype=torch.double), epsilon, low, high)
    torch.testing.assert_close(budgets, torch.ones_like(budgets))


def test_refinement_only_redistributes():
    """Column sums of d log epsilon / d log initial are 0 (METHODS 1.2)."""
    outputs = torch.rand(1, 1, 3, 3, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(lambda g: relative_budgets(g, 0.4, 0.5, 2.0).log().flatten(), outputs)
    torch.testing.assert_close(jacobian.flatten(1).sum(0), torch.zeros(9, dtype=torch.double))


def test_follows_the_formulas_of_section_3_3():
    g = torch.rand(1, 1, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1)).flatten()
    for g_i, epsilon, low, high in ((0.2 * g, 0.4, 0.5, 2.0), (1 - 0.2 * g, 0.7, 0.25, 3.0)):
        log_l, log_u, n, log_v0 = math.log(low * epsilon), math.log(min(high * epsilon, 1)), 16, 16 * math.log(epsilon)
        e = log_l + g_i * (log_u - log_l)
        log_v = float(e.sum())
        if log_v < log_v0:
            e = e + (log_v0 - log_v) / (n * log_u - log_v) * (log_u - e)
        else:
            e = e - (log_v - log_v0) / (log_v - n * log_l) * (e - log_l)
        ours = epsilon * relative_budgets(g_i.view(1, 1, 4, 4), epsilon, low, high)
        torch.testing.assert_close(ours.flatten(), e.exp())


def test_volume_is_exact_under_bfloat16_autocast():
    generator, x = BudgetGenerator(), torch.rand(2, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = generator(x)
        assert outputs.dtype == torch.bfloat16
        budgets = 0.4 * relative_budgets(outputs, 0.4, 0.5, 2.0)
    assert (budgets.double().log().flatten(1).mean(1) - math.log(0.4)).abs().max() < 1e-6


@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (0.5, 1.0), (1.0, 1.0)])
def test_gradients_are_finite_at_the_edges_of_the_range(low, high):
    outputs = torch.rand(2, 1, 4, 4).requires_grad_()
    relative_budgets(outputs, 1.0, low, high).square().sum().backward()
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ((0.0, 0.5, 2.0), "^epsilon: got 0.0"),
        ((1.5, 0.5, 2.0), "^epsilon: got 1.5"),
        ((0.4, 1.5, 2.0), "^alpha_low: got 1.5"),
        ((0.4, 0.0, 2.0), "^alpha_low: got 0.0"),
        ((0.4, 0.5, 0.9), "^alpha_high: got 0.9"),
    ],
)
def test_impossible_settings(setting, message):
    with pytest.raises(SettingError, match=message):
        check_budget_range(*setting)
