"""Caveats: what a reader must know before comparing a row with the other rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from reports import settings
from reports.records import Record
from reports.rows import SHOWN, Row
from reports.runs import Run

FEW_IMAGES = 1000
ROUNDING = 1e-6


def add_caveats(rows: list[Row], stage: str) -> None:
    """Fill :attr:`Row.caveats`; the data and attacks of most rows are the standard."""
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
    for name in sorted({name for of_run in counts for name in of_run}):
        numbers = sorted({of_run[name] for of_run in counts if name in of_run})
        if len(numbers) > 1:
            yield f"unequal numbers of images: {name} of {numbers[0]} to {numbers[-1]}; the std is not over seeds alone"
    above = [names for run in row.runs if (names := _above_clean(run, stage))]
    if above:
        runs = f" in {len(above)} of {len(row.runs)} runs" if len(row.runs) > 1 else ""
        yield f"attacked above clean{runs}, or of other images: {above[0]}"


def _of_run(run: Run, stage: str) -> Iterator[str]:
    """Caveats of a run that do not depend on other runs."""
    if not any(name.startswith(f"{stage}/") for name in run.metrics):
        yield f"no metrics of the stage {stage}"
    if any(str(record.get("commit")).endswith("-dirty") for record in run.records):
        yield "dirty commit: the code had changes that are not committed"
    if any(record.get("commit") is None for record in run.records):
        yield "unknown commit"
    for record in run.evaluations:
        for name, reason in (record.get("skipped") or {}).items():
            yield f"{name} was left out: {reason.partition('; leave')[0]}"  # without the remedy
    if missing := sorted(name for name, value in run.metrics.items() if value is None):
        yield f"not finite: {', '.join(missing)}"
    if len({settings.data(record) for record in run.evaluations if record in _of_stage(run, stage)} - {""}) > 1:
        yield "tests of different data: each metric is of the last that has it"
    if run.repeated:
        yield f"measured again with another value, the last one counts: {', '.join(sorted(run.repeated))}"
    yield from _few(run, stage)
    yield from _order(run, stage)


def _few(run: Run, stage: str) -> Iterator[str]:
    shown = tuple(f"{stage}/{kind}" for kind in (*SHOWN, "attacked_samples", "certified_volume/samples"))
    counts = {name: count for name, count in _counts(run, stage).items() if name == stage or name.startswith(shown)}
    if counts and min(counts.values()) < FEW_IMAGES:
        few = min(counts.values())
        half = 98 / few**0.5  # half the 95 % interval of an accuracy of one half, in points
        yield f"few samples: some metrics are of {few} images, ±{half:.1f} points"


def _counts(run: Run, stage: str) -> dict[str, int]:
    """Number of images of the stage, and of each of its evaluations that used only some of them, by name."""
    counts = [int(record["samples"][stage]) for record in run.records if stage in (record.get("samples") or {})]
    all_images = {stage: min(counts)} if counts else {}
    of_some = re.compile(f"{stage}/(attacked_samples|.*/samples)")
    return all_images | {
        name: int(value) for name, value in run.metrics.items() if value is not None and of_some.fullmatch(name)
    }


def _order(run: Run, stage: str) -> Iterator[str]:
    """Check certified <= attacked <= clean; a violation means a wrong bound or attack, or different images."""
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
    """Attacked accuracies that exceed the clean one by more than one image, with both values; empty if there are none.

    The clean accuracy is that of the attacked images if it is recorded: for networks with noise it is the mean over as
    many passes as under attack, and for validations on some batches it is the accuracy on these.
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
    """Caveats of a run that differs from most runs."""
    if run.data and data and run.data != data:
        yield "other data than most rows"
    own = _attacks(run, stage)
    every = own | _other_attacks(run, stage)
    different = sorted(name for name in every.keys() & usual.keys() if every[name] != usual[name])
    numbers = [name for name in different if name.startswith(settings.IMAGES)]
    for what, names in (
        ("attacks", [name for name in different if name not in (*settings.PRECISION, *numbers)]),
        ("evaluations", [name for name in different if name in settings.PRECISION and name not in numbers]),
    ):
        if names:
            yield f"unequal {what}: other settings of {', '.join(names)} than most rows"
    for name in numbers:
        yield f"other {name} than most rows: {every[name]} against {usual[name]}"
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
        texts |= {name: text for name, text in others.items() if not name.startswith(left_out)}
    if f"{stage}/accuracy/clean/noise_off" not in run.metrics:  # numbers of passes matter to networks with noise alone
        texts = {name: text for name, text in texts.items() if not name.startswith("AdversarialEvaluation.")}
    budgets = re.compile(f"{stage}/certified_accuracy/(?!(linf|l2|l1)_)[^/]+")  # their names have no sizes
    if not any(budgets.fullmatch(name) for name in run.metrics):
        texts.pop("CertifiedEvaluation.epsilons", None)
    for name, count in _counts(run, stage).items():
        texts[settings.IMAGES if name == stage else f"{settings.IMAGES} of {name}"] = str(count)
    return texts


def _of_stage(run: Run, stage: str) -> list[Record]:
    """The records that have metrics of the stage."""
    return [record for record in run.records if any(name.startswith(f"{stage}/") for name in record["metrics"])]


def _usual_attacks(rows: list[Row], stage: str) -> dict[str, str]:
    """The most common settings of the attacks that at least half of the attacked runs have, and of other attacks."""
    runs = [run for row in rows for run in row.runs]
    attacks = [texts for run in runs if (texts := _attacks(run, stage))]
    counts = Counter(name for texts in attacks for name in texts)
    others = [_other_attacks(run, stage) for run in runs]
    usual = {name for name, count in counts.items() if 2 * count >= len(attacks)}
    usual |= {name for texts in others for name in texts}
    of_runs = [*attacks, *others]
    return {name: _most_common([texts[name] for texts in of_runs if name in texts]) for name in sorted(usual)}


def _most_common(values: list[str]) -> str:
    counted = Counter(value for value in values if value)
    return counted.most_common(1)[0][0] if counted else ""
