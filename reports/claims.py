"""Tables of claims: what a paper says, what was measured, and whether the difference exceeds chance over seeds.

A claim of ``results/tables/NAME.yaml`` has ``claim`` and ``paper``, texts; ``title`` and ``metric``, with ``show`` and
``digits`` as of a column; ``runs`` and ``against``, files in ``results/`` that differ by their seeds;
``metric_against`` if these have another metric; and ``expected``: whether the paper has the metric ``higher`` or
``lower`` in ``runs``, or ``equal``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from reports.comparison import FEWEST_SEEDS, Difference, between, holm
from reports.rows import Row, Value
from reports.runs import read_runs
from robust.errors import require

TITLES = ("claim", "paper", "metric", "ours", "against", "decided")
EXPECTED = ("higher", "lower", "equal")
_SIDES = ("runs", "against")


def claim_lines(
    results: Path, name: str, claims: list[dict[str, Any]], number: Callable[[Value, str, int], str]
) -> list[list[str]]:
    """Cells of a table of claims, the titles first; p-values are adjusted by Holm's method over its claims.

    Args:
        results: folder of the runs.
        name: the table's name, for errors.
        claims: as the YAML file has them.
        number: writes a value by ``show`` and ``digits``.

    Raises:
        SettingError: if a run is missing or has no such metric, or ``expected`` is another word.
    """
    for claim in claims:
        require(
            claim["expected"] in EXPECTED, f"results {name}, expected", claim["expected"], f"give one of {EXPECTED}"
        )
    pairs = [tuple(Row(read_runs(results / file for file in claim[side])) for side in _SIDES) for claim in claims]
    metrics = [(claim["metric"], claim.get("metric_against", claim["metric"])) for claim in claims]
    differences = [_difference(name, pair, both) for pair, both in zip(pairs, metrics, strict=True)]
    tested = [index for index, each in enumerate(differences) if each.p is not None and not each.networks_only]
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
    assert difference is not None
    return difference


def _seeds(pair: tuple[Row, ...], metrics: tuple[str, str]) -> int:
    """The fewer runs with the metric; records of a run's training and test may lie in two folders, and are two runs."""
    return min(value.n for row, metric in zip(pair, metrics, strict=True) if (value := row.value(metric)))


def _shown(value: Value | None, claim: dict[str, Any], number: Callable[[Value, str, int], str]) -> str:
    assert value is not None
    count = f" (n {value.n})" if value.n > 1 else ""
    return number(value, claim.get("show", "accuracy %"), claim.get("digits", 1)) + count


def _decision(expected: str, difference: Difference, seeds: int) -> str:
    """Whether the difference agrees with the paper's, in words."""
    if difference.p is None or difference.networks_only:
        return f"not decided: {'no variance' if seeds >= FEWEST_SEEDS else f'fewer than {FEWEST_SEEDS} seeds'}"
    how = f"p = {difference.p:.2g}, {seeds} seeds"
    if not difference.exceeds_chance:
        return f"{'no difference found' if expected == 'equal' else 'not decided: within chance'} ({how})"
    agrees = (difference.value > 0) == (expected == "higher") and expected != "equal"
    return f"{'yes' if agrees else 'no: they differ' if expected == 'equal' else 'no: the opposite'} ({how})"
