"""What a reader must know before comparing a row with the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from reports import settings
from reports.records import Record
from reports.rows import Row
from reports.runs import Run

FEW_IMAGES = 1000
ROUNDING = 1e-6


def add_caveats(rows: list[Row], stage: str) -> None:
    """Fill :attr:`Row.caveats`; what most rows have counts as the standard."""
    data = _most_common([run.data for row in rows for run in row.runs])
    attacks = _usual_attacks(rows, stage)
    for row in rows:
        of_runs = [caveat for run in row.runs for caveat in (*_of_run(run, stage), *_other(run, stage, data, attacks))]
        row.caveats = list(dict.fromkeys([*of_runs, *_of_row(row, stage)]))


def _of_row(row: Row, stage: str) -> Iterator[str]:
    commits = {str(record.get("commit")).removesuffix("-dirty") for run in row.runs for record in run.records}
    if len(commits) > 1:
        yield f"{len(commits)} commits: {', '.join(sorted(commit[:7] for commit in commits))}"
    if failed := [count for run in row.runs if (count := run.metrics.get(f"{stage}/masking/failed_checks"))]:
        low, high = f"{min(failed):.0f}", f"{max(failed):.0f}"
        yield f"masked gradients: {low if low == high else f'{low} to {high}'} checks failed"
    counts = [_counts(run, stage) for run in row.runs]
    for name in sorted({name for each in counts for name in each}):
        numbers = sorted({each[name] for each in counts if name in each})
        if len(numbers) > 1:
            yield f"unequal numbers of images: {name} of {numbers[0]} to {numbers[-1]}; the std is not over seeds alone"
    above = [names for run in row.runs if (names := _above_clean(run, stage))]
    if above:
        runs = f" in {len(above)} of {len(row.runs)} runs" if len(row.runs) > 1 else ""
        yield f"attacked above clean{runs}, or of other images: {above[0]}"


def _of_run(run: Run, stage: str) -> Iterator[str]:
    """Caveats that need no other run."""
    if not any(name.startswith(f"{stage}/") for name in run.metrics):
        yield f"no metrics of the stage {stage}"
    if any(str(record.get("commit")).endswith("-dirty") for record in run.records):
        yield "dirty commit: the code had changes that are not committed"
    if any(record.get("commit") is None for record in run.records):
        yield "unknown commit"
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
    counts = _counts(run, stage).values()
    if counts and min(counts) < FEW_IMAGES:
        half = 98 / min(counts) ** 0.5  # of the 95 % interval of an accuracy of one half, in points
        yield f"few samples: some metrics are of {min(counts)} images, ±{half:.1f} points"


def _counts(run: Run, stage: str) -> dict[str, int]:
    """The numbers of images of the stage and of its evaluations that took some of them, by name."""
    counts = [int(record["samples"][stage]) for record in run.evaluations if stage in (record.get("samples") or {})]
    all_images = {stage: min(counts)} if counts else {}
    of_some = re.compile(f"{stage}/(attacked_samples|.*/samples)")
    return all_images | {
        name: int(value) for name, value in run.metrics.items() if value is not None and of_some.fullmatch(name)
    }


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


def _above_clean(run: Run, stage: str) -> str:
    """Attacked accuracies that are more than one image above the clean one, with both values; empty if none is.

    Networks with noise have a clean accuracy that is the mean over as many passes as the attacked ones, and validations
    of some batches one of the attacked images.
    """
    prefix = f"{stage}/accuracy"
    of_attacked, of_all = run.metrics.get(f"{prefix}/clean/attacked"), run.metrics.get(f"{prefix}/clean")
    clean = of_all if of_attacked is None else of_attacked
    if clean is None:
        return ""
    counts = [record["samples"][stage] for record in run.evaluations if stage in (record.get("samples") or {})]
    images = run.metrics.get(f"{stage}/attacked_samples") or min(counts, default=FEW_IMAGES)
    attacked = {
        name.removeprefix(f"{prefix}/"): value
        for name, value in run.metrics.items()
        if re.fullmatch(f"{prefix}/(?!(clean|group|worst)/)[^/]+/[^/]+", name) and value is not None
    }
    above = [f"{name} {value:.2%}" for name, value in attacked.items() if value > clean + 1 / images + ROUNDING]
    return ", ".join([*above, f"clean {clean:.2%}"]).replace("%", " %") if above else ""


def _other(run: Run, stage: str, data: str, usual: dict[str, str]) -> Iterator[str]:
    """Caveats relative to what most runs have."""
    if run.data and data and run.data != data:
        yield "other data than most rows"
    own = _attacks(run, stage)
    every = own | _other_attacks(run, stage)
    if different := sorted(name for name in every.keys() & usual.keys() if every[name] != usual[name]):
        yield f"unequal attacks: other settings of {', '.join(different)} than most rows"
    expected = {name for name in usual if not name.startswith(settings.OTHER_EVALUATIONS)}
    if own and (absent := sorted(expected - own.keys())):
        yield f"unequal attacks: without {', '.join(absent)}"
    if more := sorted(own.keys() - expected):
        yield f"unequal attacks: also {', '.join(more)}, unlike most rows"


def _attacks(run: Run, stage: str) -> dict[str, str]:
    """The attacks of ``AdversarialEvaluation``, which all attacked rows should have."""
    texts: dict[str, str] = {}
    for record in _of_stage(run, stage):
        config, in_training = record.get("config") or {}, record is run.training
        texts |= settings.attacks(config, stage, run.metrics, in_training=in_training)
    return texts


def _other_attacks(run: Run, stage: str) -> dict[str, str]:
    """Settings of the attacks of other evaluations, which only some rows need to have."""
    texts: dict[str, str] = {}
    for record in _of_stage(run, stage):
        config, in_training = record.get("config") or {}, record is run.training
        left_out = tuple(f"{name}." for name in record.get("skipped") or {})
        others = settings.other_attacks(config, stage, in_training=in_training)
        texts |= {name: each for name, each in others.items() if not name.startswith(left_out)}
    return texts


def _of_stage(run: Run, stage: str) -> list[Record]:
    """The records that have metrics of the stage."""
    return [record for record in run.records if any(name.startswith(f"{stage}/") for name in record["metrics"])]


def _usual_attacks(rows: list[Row], stage: str) -> dict[str, str]:
    """The most common settings: of the attacks that at least half of the attacked runs have, and of others' attacks."""
    runs = [run for row in rows for run in row.runs]
    attacks = [texts for run in runs if (texts := _attacks(run, stage))]
    counts = Counter(name for each in attacks for name in each)
    others = [_other_attacks(run, stage) for run in runs]
    usual = {name for name, count in counts.items() if 2 * count >= len(attacks)} | {n for each in others for n in each}
    return {name: _most_common([each[name] for each in (*attacks, *others) if name in each]) for name in sorted(usual)}


def _most_common(values: list[str]) -> str:
    counted = Counter(value for value in values if value)
    return counted.most_common(1)[0][0] if counted else ""
