"""Certified <= attacked <= clean, for each example: what evaluations check of themselves and of each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from robust.errors import ContradictionError
from robust.threat_models import ThreatModel

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
            inside = attack.threat_model.lies_in(bound.threat_model, len(indices))
            check_order(bound.holds, attack.holds & inside.to(bound.holds.device), indices, bound.by, attack.by)
