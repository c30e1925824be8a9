"""What a reader must know before comparing a row with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from reports import settings
from reports.rows import Row
from reports.runs import Run

FEW_IMAGES = 1000
ROUNDING = 1e-6


def add_caveats(rows: list[Row], stage: str) -> None:
    """Fill :attr:`Row.caveats`; what most rows have counts as the standard."""
    data = _most_common([_data(run) for row in rows for run in row.runs])
    attacks = _common_attacks(rows)
    for row in rows:
        found = [caveat for run in row.runs for caveat in (*_of_run(run, stage), *_other(run, data, attacks))]
        row.caveats = list(dict.fromkeys([*found, *_of_row(row)]))


def _of_row(row: Row) -> Iterator[str]:
    commits = {str(record.get("commit")).removesuffix("-dirty") for run in row.runs for record in run.records}
    if len(commits) > 1:
        yield f"{len(commits)} commits: {', '.join(sorted(commit[:7] for commit in commits))}"


def _of_run(run: Run, stage: str) -> Iterator[str]:
    """Caveats that need no other run."""
    if not any(name.startswith(f"{stage}/") for name in run.metrics):
        yield f"no metrics of the stage {stage}"
    if any(str(record.get("commit")).endswith("-dirty") for record in run.records):
        yield "dirty commit: the code had changes that are not committed"
    if any(record.get("commit") is None for record in run.records):
        yield "unknown commit"
    if run.metrics.get(f"{stage}/masking/failed_checks"):
        yield f"masked gradients: {run.metrics[f'{stage}/masking/failed_checks']:.0f} checks failed"
    for record in run.evaluations:
        for name, reason in (record.get("skipped") or {}).items():
            yield f"{name} was left out: {reason.partition('; leave')[0]}"  # the remedy was for the run
    if missing := sorted(name for name, value in run.metrics.items() if value is None):
        yield f"not finite: {', '.join(missing)}"
    if run.repeated:
        yield f"measured again with another value, the last one counts: {', '.join(sorted(run.repeated))}"
    yield from _few(run, stage)
    yield from _order(run, stage)


def _few(run: Run, stage: str) -> Iterator[str]:
    counts = [int(record["samples"][stage]) for record in run.evaluations if stage in (record.get("samples") or {})]
    names = ("attacked_samples", "masking/samples", "certified_volume/samples", "weighted_accuracy/samples")
    counts += [int(value) for name in names if (value := run.metrics.get(f"{stage}/{name}")) is not None]
    if counts and min(counts) < FEW_IMAGES:
        half = 98 / min(counts) ** 0.5  # of the 95 % interval of an accuracy of one half, in points
        yield f"few samples: some metrics are of {min(counts)} images, ±{half:.1f} points"


def _order(run: Run, stage: str) -> Iterator[str]:
    """Certified <= attacked <= clean must hold; if not, bounds or attacks are wrong, or on other images."""
    clean = run.metrics.get(f"{stage}/accuracy/clean")
    for name, certified in run.metrics.items():
        prefix, _, threat_model = name.rpartition("/")
        if prefix != f"{stage}/certified_accuracy" or certified is None:
            continue
        attacked = [
            (other, value)
            for other, value in run.metrics.items()
            if value is not None and other.startswith(f"{stage}/accuracy/") and other.endswith(f"/{threat_model}")
        ]
        upper = [*attacked, *([(f"{stage}/accuracy/clean", clean)] if clean is not None else [])]
        for other, value in upper:
            if certified > value + ROUNDING:
                yield f"contradiction, or other images: {name} is above {other}"


def _other(run: Run, data: str, attacks: dict[str, str]) -> Iterator[str]:
    """Caveats relative to what most runs have."""
    if _data(run) and data and _data(run) != data:
        yield "other data than most rows"
    own = _attacks(run)
    if different := sorted(name for name in own.keys() & attacks.keys() if own[name] != attacks[name]):
        yield f"unequal attacks: other settings of {', '.join(different)} than most rows"
    if own and (absent := sorted(attacks.keys() - own.keys())):
        yield f"unequal attacks: without {', '.join(absent)}"
    if more := sorted(own.keys() - attacks.keys()):
        yield f"unequal attacks: also {', '.join(more)}, unlike most rows"


def _data(run: Run) -> str:
    return settings.data((run.evaluations or run.records)[-1].get("config") or {})


def _attacks(run: Run) -> dict[str, str]:
    return {
        name: each for record in run.evaluations for name, each in settings.attacks(record.get("config") or {}).items()
    }


def _common_attacks(rows: list[Row]) -> dict[str, str]:
    """The most common settings of the attacks that at least half of the attacked runs have."""
    attacks = [found for row in rows for run in row.runs if (found := _attacks(run))]
    counts = Counter(name for each in attacks for name in each)
    common = [name for name, count in counts.items() if 2 * count >= len(attacks)]
    return {name: _most_common([each[name] for each in attacks if name in each]) for name in common}


def _most_common(values: list[str]) -> str:
    counted = Counter(value for value in values if value)
    return counted.most_common(1)[0][0] if counted else ""
