"""The order certified <= attacked <= clean for each example, checked within and between evaluations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from robust.errors import ContradictionError
from robust.threat_models import ThreatModel

MAX_SHOWN = 5


class Verdict(NamedTuple):
    """The verdicts of one evaluation on the examples of a batch in a threat model."""

    threat_model: ThreatModel
    holds: Tensor  # bool (B,): certified, or misclassified
    source: str  # the verifier or the attack


def check_order(certified: Tensor, misclassified: Tensor, indices: Tensor, verifier: str, how: str) -> None:
    """Check that no certified example is misclassified; all tensors are (B,).

    Args:
        certified: whether each example is certified, bool.
        misclassified: whether each example is misclassified, bool.
        indices: indices of the examples in the data, int64.
        verifier: name of the verifier.
        how: how the examples are misclassified, for the message.

    Raises:
        ContradictionError: if a certified example is misclassified; the message has the first indices.
    """
    contradictions = indices[certified & misclassified].tolist()
    if contradictions:
        shown = ", ".join(str(index) for index in contradictions[:MAX_SHOWN])
        shown += ", ..." if len(contradictions) > MAX_SHOWN else ""
        raise ContradictionError(
            f"unsound bound: {verifier} certified {len(contradictions)} of {len(indices)} examples that are "
            f"misclassified {how}, at data indices {shown}; please report this with the configuration"
        )


def check_against_others(certified: Iterable[Verdict], misclassified: Iterable[Verdict], indices: Tensor) -> None:
    """Compare certified with misclassified examples, where the attacked set is a subset of the certified set.

    Raises:
        ContradictionError: if an example is certified and misclassified.
    """
    attacks = list(misclassified)
    for bound in certified:
        for attack in attacks:
            inside = attack.threat_model.lies_in(bound.threat_model, len(indices))
            check_order(bound.holds, attack.holds & inside.to(bound.holds.device), indices, bound.source, attack.source)
