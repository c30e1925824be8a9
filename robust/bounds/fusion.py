"""Loss fusion: an upper bound of the cross-entropy from intervals and one linear row (Xu et al. 2020, Sec. 3.3).

The cross-entropy is log E with E = sum_k exp(z_k - z_y). The functions bound E exp(-shift), which does not overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor


def chord(lowest: Tensor, highest: Tensor, width: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the line through exp(v - shift) at both ends of intervals [lowest, highest].

    Args:
        lowest: lower ends of z_k - z_y, (B, K).
        highest: upper ends, (B, K).
        width: widths of the intervals, (B, K).
        shift: shift of the exponents, (B, 1).

    Returns:
        Slopes and intercepts, (B, K) each.
    """
    guarded = width.clamp(min=1e-6)  # the chord of a wider interval from the same lower end lies above
    slope = (highest - shift + (guarded - width)).exp() * -torch.expm1(-guarded) / guarded
    return slope, (lowest - shift).exp() - slope * lowest


def mixed_bound(crown: Tensor, highest: Tensor, shift: Tensor, crown_weight: float) -> Tensor:
    """Upper bound of the cross-entropy, (B,), from a mixture of the bounds of E by CROWN-IBP and by IBP.

    Args:
        crown: CROWN-IBP's upper bound of E exp(-shift), (B,).
        highest: IBP's upper ends of z_k - z_y, (B, K).
        shift: shift of the exponents, (B, 1).
        crown_weight: weight of CROWN-IBP's bound, in (0, 1]; that of IBP's is the rest.
    """
    # E >= exp(0), its own label's term: rounding must not push the bound below, where the log is undefined
    bound = torch.maximum(crown, (-shift.squeeze(-1)).exp().clamp(min=torch.finfo(crown.dtype).tiny))
    if crown_weight < 1:
        bound = crown_weight * bound + (1 - crown_weight) * (highest - shift).exp().sum(-1)
    return bound.log() + shift.squeeze(-1)
