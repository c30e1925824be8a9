"""Contextual perturbation budgets: from a generator's outputs to budgets of exact volume and range.

Source: Learning Contextual Perturbation Budgets for Training Robust Neural Networks, Sec. 3.1-3.3 (eq. 2-5). The
printed formulas of Sec. 3.3 mix volumes with their logarithms; here all is in logarithms, and relative to epsilon0:
r_i = epsilon_i / epsilon0. Then the volume constraint is sum_i log r_i = 0 whatever epsilon0 is, and the range is
[alpha_low, min(alpha_high, 1 / epsilon0)].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robust.errors import require


def relative_budgets(outputs: Tensor, epsilon: float, alpha_low: float, alpha_high: float) -> Tensor:
    """Budgets relative to epsilon0, with product 1 over each example and each in the range (Sec. 3.3).

    Args:
        outputs: the generator's outputs in (0, 1), shape (B, C, H, W).
        epsilon: epsilon0 in (0, 1], the uniform budget of the same volume.
        alpha_low: smallest budget over epsilon0, in (0, 1] (alpha with a bar below, eq. 5).
        alpha_high: largest budget over epsilon0, at least 1 (alpha with a bar above, eq. 5).

    Returns:
        r of shape (B, C, H, W), differentiable to ``outputs``; constant outputs give r = 1.
    """
    # a generator under bf16 autocast gives bf16, in which no volume is exact
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    low, high = math.log(alpha_low), math.log(min(alpha_high, 1 / epsilon))
    initial = (low + outputs * (high - low)).flatten(1)
    n, excess = initial.shape[1], initial.sum(1, keepdim=True)  # excess log volume over the target, which is 0
    # too large: every log budget moves the same share of its way down to low; too small: up to high
    room = torch.where(excess > 0, excess - n * low, n * high - excess)
    share = (excess.abs() / room.clamp(min=1e-12)).clamp(max=1)
    goal = torch.where(excess > 0, initial.new_tensor(low), initial.new_tensor(high))
    refined = initial + share * (goal - initial)
    return refined.exp().clamp(alpha_low, min(alpha_high, 1 / epsilon)).view_as(outputs)


def check_budget_range(epsilon: float, alpha_low: float, alpha_high: float) -> None:
    """Raise :class:`robust.errors.SettingError` where no budgets of that volume and range exist."""
    require(0 < epsilon <= 1, "model.epsilon", epsilon, "give epsilon0 in (0, 1], in pixel units")
    require(0 < alpha_low <= 1, "model.alpha_low", alpha_low, "give a value in (0, 1]: the mean budget must fit")
    require(alpha_high >= 1, "model.alpha_high", alpha_high, "give a value of at least 1: the mean budget must fit")
