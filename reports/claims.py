"""Tables of claims: what a paper says, what was measured, and whether the difference exceeds chance over seeds.

A claim in ``results/tables/NAME.yaml`` has

- ``claim`` and ``paper``: texts
- ``title`` and ``metric``, with ``show`` and ``digits`` as in a column
- ``runs`` and ``against``: lists of files in ``results/``; the files of a list differ only in their seeds
- ``metric_against``, if the metric of ``against`` has another name
- ``expected``: ``higher`` or ``lower`` if the paper has a higher or lower metric in ``runs``, else ``equal``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from reports.comparison import FEWEST_SEEDS, Difference, between, holm, shown_p
from reports.rows import Row, Value
from reports.runs import read_runs
from robust.errors import SettingError, require

TITLES = ("claim", "paper", "metric", "ours", "against", "decided")
EXPECTED = ("higher", "lower", "equal")
_SIDES = ("runs", "against")


def claim_lines(
    results: Path, name: str, claims: list[dict[str, Any]], number: Callable[[Value, str, int], str]
) -> list[list[str]]:
    """Cells of a table of claims, the titles first; Holm's method adjusts the p-values for the number of claims.

    Args:
        results: folder of the runs.
        name: name of the table, for errors.
        claims: claims as in the YAML file.
        number: function that writes a value by ``show`` and ``digits``.

    Raises:
        SettingError: if a run is missing or does not have the metric, or ``expected`` is another word.
    """
    for claim in claims:
        require(
            claim["expected"] in EXPECTED, f"results {name}, expected", claim["expected"], f"give one of {EXPECTED}"
        )
    pairs = [tuple(Row(read_runs(results / file for file in claim[side])) for side in _SIDES) for claim in claims]
    metrics = [(claim["metric"], claim.get("metric_against", claim["metric"])) for claim in claims]
    differences = [_difference(name, pair, both) for pair, both in zip(pairs, metrics, strict=True)]
    tested = [index for index, one in enumerate(differences) if one.p is not None and not one.networks_only]
    for index, p in zip(tested, holm([differences[index].p or 0.0 for index in tested]), strict=True):
        differences[index] = replace(differences[index], p=p)
    lines = [list(TITLES), ["---"] * len(TITLES)]
    for claim, pair, both, difference in zip(claims, pairs, metrics, differences, strict=True):
        values = [_shown(row.value(metric), claim, number) for row, metric in zip(pair, both, strict=True)]
        decision = _decision(claim["expected"], difference, _seeds(pair, both))
        lines.append([claim["claim"], str(claim["paper"]), claim["title"], *values, decision])
    return lines


def _difference(name: str, pair: tuple[Row, ...], metrics: tuple[str, str]) -> Difference:
    for row, metric in zip(pair, metrics, strict=True):
        require(
            row.value(metric) is not None, f"results {name}, metric", metric, f"{row.runs[0].name} has no such metric"
        )
    difference = between(pair[0], metrics[0], pair[1], metrics[1])
    if difference is None:
        raise SettingError(f"results {name}, metric_against", metrics[1], f"no run has this metric and {metrics[0]}")
    return difference


def _seeds(pair: tuple[Row, ...], metrics: tuple[str, str]) -> int:
    """The smaller number of runs that have the metric.

    Not all runs have it: the records of a training and of its test may be in two folders, and count as two runs.
    """
    return min(value.n for row, metric in zip(pair, metrics, strict=True) if (value := row.value(metric)))


def _shown(value: Value | None, claim: dict[str, Any], number: Callable[[Value, str, int], str]) -> str:
    assert value is not None
    count = f" (n {value.n})" if value.n > 1 else ""
    return number(value, claim.get("show", "accuracy %"), claim.get("digits", 1)) + count


def _decision(expected: str, difference: Difference, seeds: int) -> str:
    """Whether the difference agrees with the paper's, in words."""
    if difference.p is None or difference.networks_only:
        return f"not decided: {'no variance' if seeds >= FEWEST_SEEDS else f'fewer than {FEWEST_SEEDS} seeds'}"
    how = f"p = {shown_p(difference.p)}, {seeds} seeds"
    if not difference.exceeds_chance:
        return f"{'no difference found' if expected == 'equal' else 'not decided: within chance'} ({how})"
    agrees = (difference.value > 0) == (expected == "higher") and expected != "equal"
    return f"{'yes' if agrees else 'no: they differ' if expected == 'equal' else 'no: the opposite'} ({how})"
