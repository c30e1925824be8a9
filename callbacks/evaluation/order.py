"""Certified <= attacked <= clean, for each example: what evaluations check of themselves and of each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from robust.errors import ContradictionError
from robust.threat_models import L1Ball, L2Ball, PixelBox, ThreatModel

SHOWN = 5


class Verdict(NamedTuple):
    """What one evaluation found of the examples of a batch in a threat model."""

    threat_model: ThreatModel
    holds: Tensor  # bool (B,): certified, or misclassified
    by: str  # whose verdict it is


def check_order(certified: Tensor, misclassified: Tensor, indices: Tensor, verifier: str, how: str) -> None:
    """Check that no certified example is misclassified; all tensors are (B,).

    Args:
        certified: bool.
        misclassified: bool.
        indices: of the examples in the data.
        verifier: what certified them.
        how: what was done to those that are misclassified.

    Raises:
        ContradictionError: naming the first of them.
    """
    wrong = indices[certified & misclassified].tolist()
    if wrong:
        shown = ", ".join(str(index) for index in wrong[:SHOWN]) + (", ..." if len(wrong) > SHOWN else "")
        raise ContradictionError(
            f"unsound bound: {verifier} certified {len(wrong)} of {len(indices)} examples that are misclassified "
            f"{how}, in the data at {shown}; please report this with the configuration"
        )


def check_against_others(certified: Iterable[Verdict], misclassified: Iterable[Verdict], indices: Tensor) -> None:
    """Check verdicts of several evaluations against each other, wherever the attacked set lies in the certified one.

    Raises:
        ContradictionError: if an example is certified and misclassified.
    """
    attacks = list(misclassified)
    for bound in certified:
        for attack in attacks:
            inside = _inside(attack.threat_model, bound.threat_model, len(indices))
            check_order(bound.holds, attack.holds & inside.to(bound.holds.device), indices, bound.by, attack.by)


def _inside(inner: ThreatModel, outer: ThreatModel, batch: int) -> Tensor:
    """Of which examples the inner set is certainly a part of the outer one, bool (B,); both of the same kind."""
    if isinstance(inner, PixelBox) and isinstance(outer, PixelBox):
        smaller = inner.budgets.detach() <= outer.budgets.detach()
        return smaller.reshape(len(smaller) if smaller.dim() == 4 else 1, -1).all(1).expand(batch)
    for kind in (L2Ball, L1Ball):
        if isinstance(inner, kind) and isinstance(outer, kind):
            return torch.tensor(inner.epsilon <= outer.epsilon).expand(batch)
    return torch.tensor(False).expand(batch)
