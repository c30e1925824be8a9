"""Tests whether a difference between two rows exceeds chance."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from reports.rows import Row

LEVEL = 0.05
FEWEST_SEEDS = 3  # for a statement about methods rather than about single networks
MCNEMAR = "McNemar's exact test on the same images"
WELCH = "Welch's t-test over seeds"
PAIRED = "the paired t-test over seeds"
NO_VARIANCE = "the seeds of each row have no variance, which a t-test needs"


def shown_p(p: float) -> str:
    """A p-value with two digits, or as many as tell it from the level.

    >>> shown_p(0.0123), shown_p(0.04987), shown_p(0.05004)
    ('0.012', '0.0499', '0.05004')
    """
    digits = next(digits for digits in range(2, 18) if float(f"{p:.{digits}g}") != LEVEL or p == LEVEL)
    return f"{p:.{digits}g}"


@dataclass(frozen=True)
class Difference:
    """A row's metric minus the baseline's.

    Args:
        value: difference of the means.
        test: name of the test; empty if none applies.
        p: p-value, adjusted for the number of rows after :func:`compare`; None without a test.
        networks_only: whether the statement is about two networks, not about the methods that trained them.
        untested: why there is no test, if there is none.
    """

    value: float
    test: str = ""
    p: float | None = None
    networks_only: bool = False
    untested: str = "this needs three seeds of each row, or records of the same images"

    @property
    def exceeds_chance(self) -> bool | None:
        """Whether p is below 5 %; None without a test."""
        return None if self.p is None else self.p < LEVEL

    @property
    def sentence(self) -> str:
        """The statement for a reader."""
        if self.p is None:
            return f"not tested: {self.untested}"
        verdict, test = self.verdict
        return f"{verdict} (p = {shown_p(self.p)}, {test})"

    @property
    def verdict(self) -> tuple[str, str]:
        """The verdict, and the test with its limits."""
        limits = "; it compares two networks, while methods need three seeds" if self.networks_only else ""
        return "exceeds chance" if self.exceeds_chance else "is within chance", f"{self.test}{limits}"


def compare(rows: list[Row], baseline: Row, metric: str) -> dict[int, Difference]:
    """Differences of the rows from the baseline by the row's index, for rows that have the metric.

    If both have three seeds, Welch's t-test decides; otherwise, if both record the same images, McNemar's exact test on
    the first run of each. Holm's method adjusts the p-values for the number of rows.
    """
    differences = {
        index: difference
        for index, row in enumerate(rows)
        if row is not baseline and (difference := between(row, metric, baseline, metric)) is not None
    }
    tested = [index for index, difference in differences.items() if difference.p is not None]
    adjusted = holm([differences[index].p or 0.0 for index in tested])
    for index, p in zip(tested, adjusted, strict=True):
        differences[index] = replace(differences[index], p=p)
    return differences


def between(row: Row, metric: str, baseline: Row, theirs_metric: str) -> Difference | None:
    """A row's metric minus one of the baseline's, tested as in :func:`compare`; None if one of them has no value.

    If both rows have the same runs, two metrics of the same networks are compared, by the paired t-test over the runs
    that have both.
    """
    ours, theirs = row.values(metric), baseline.values(theirs_metric)
    same = row.runs == baseline.runs
    if same:
        pairs = [(run.metrics.get(metric), run.metrics.get(theirs_metric)) for run in row.runs]
        both = [(one, other) for one, other in pairs if one is not None and other is not None]
        ours, theirs = [one for one, _ in both], [other for _, other in both]
    if not ours or not theirs:
        return None
    value = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) >= FEWEST_SEEDS:
        p = _paired(ours, theirs) if same else _welch(ours, theirs)
        return (
            Difference(value, untested=NO_VARIANCE) if np.isnan(p) else Difference(value, PAIRED if same else WELCH, p)
        )
    pair = row.runs[0].outcomes(metric), baseline.runs[0].outcomes(theirs_metric)
    if max(len(ours), len(theirs)) > 1:  # the test is of single networks, the difference of means
        return Difference(value)
    if pair[0] is None or pair[1] is None or pair[0]["images"] != pair[1]["images"]:
        return Difference(value)
    if row.runs[0].data != baseline.runs[0].data:  # the hash covers only the images' indices
        return Difference(value)
    return Difference(value, MCNEMAR, mcnemar(correct(pair[0]), correct(pair[1])), networks_only=True)


def _welch(ours: list[float], theirs: list[float]) -> float:
    """Two-sided p-value of equal means; NaN if neither has any variance."""
    sides = [
        (round(float(np.mean(side)), 12), round(float(np.std(side, ddof=1)), 12), len(side)) for side in (ours, theirs)
    ]
    if not any(std for _, std, _ in sides):
        return float("nan")
    return float(stats.ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False).pvalue)


def _paired(ours: list[float], theirs: list[float]) -> float:
    """Two-sided p-value of a mean difference of zero; NaN if all differences are equal."""
    if np.ptp(np.subtract(ours, theirs)) < 1e-6 * max(1.0, *np.abs(ours), *np.abs(theirs)):  # rounding of float32
        return float("nan")
    return float(stats.ttest_rel(ours, theirs).pvalue)


def correct(outcomes: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each image was correct, bool (N,), of a record's ``outcomes``."""
    packed = np.frombuffer(base64.b64decode(outcomes["correct"]), dtype=np.uint8)
    return np.unpackbits(packed, count=outcomes["count"]).astype(bool)


def mcnemar(first: np.ndarray[Any, np.dtype[np.bool_]], second: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    """Two-sided exact p-value of equal accuracies on the same images; bool (N,) each.

    Source: McNemar 1947; exact form: the binomial distribution of the images on which the two differ.

    >>> mcnemar(np.array([True] * 6 + [False]), np.array([False] * 6 + [False]))
    0.03125
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def holm(values: list[float]) -> list[float]:
    """Adjusted p-values, which bound the probability of any false statement (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
