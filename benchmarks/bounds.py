"""Training losses of the benchmarks ``bounds``, ``memory`` and ``shares``: a plain one, and one of each bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch.nn.functional as F
from torch import Tensor, nn

from robust.bounds import FeedForwardVerifier, LirpaVerifier, Verifier
from robust.bounds.verifier import TrainingPrecision
from robust.threat_models import PixelBox

Step = Callable[[], Tensor]


def steps(network: nn.Module, x: Tensor, y: Tensor, budgets: Tensor) -> dict[str, Step]:
    """The losses to measure, by name."""

    def fused(verifier: Verifier, crown_weight: float) -> Step:
        return lambda: verifier.cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight).mean()

    def unfused(verifier: Verifier) -> Step:
        def loss() -> Tensor:
            margins = verifier.margins(network, PixelBox(budgets).interval(x), y)
            return F.pad(-margins, (1, 0)).logsumexp(1).mean()

        return loss

    own, lirpa = FeedForwardVerifier("crown-ibp"), LirpaVerifier(method="crown-ibp")
    tf32, bf16 = (FeedForwardVerifier(training_precision=each) for each in get_args(TrainingPrecision)[1:])
    in_tf32 = {"own IBP, TF32": fused(tf32, 0.0), "own CROWN-IBP, fused, TF32": fused(tf32, 0.5)}
    return {
        "plain": lambda: F.cross_entropy(network(x), y),
        "own IBP": fused(own, 0.0),
        "own IBP, bf16": fused(bf16, 0.0),
        "own CROWN-IBP, fused": fused(own, 0.5),
        "own CROWN-IBP, fused, bf16": fused(bf16, 0.5),
        **(in_tf32 if x.is_cuda else {}),
        "own CROWN-IBP, unfused": unfused(own),
        "auto_LiRPA IBP": fused(lirpa, 0.0),
        "auto_LiRPA CROWN-IBP, fused": fused(lirpa, 0.5),
        "auto_LiRPA CROWN-IBP, unfused": unfused(lirpa),
    }
