"""The record of a finished sweep, as the documentation reads it: mean and std over the seeds of each trial.

    uv run benchmarks/sweeps.py configs/sweeps/r2_weight.yaml [--out FILE]

Settings with one value in all trials are left out. Commit and processor are those of the first trial's training. If
``train.py validate`` has measured the trainings on more validation images, their clean accuracy is a column.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.study import StudyFile, read_study
from robust.errors import require

SHORT = {
    "val/certified_accuracy/own_budgets": "certified, own budgets, %",
    "val/accuracy/clean": "clean, %",
    "val/robustness_score/r2": "R2",
    "val/accuracy/average": "average, %",
}


def main(arguments: list[str] | None = None) -> None:
    """Read the trials in the sweep's log folder, and print and write its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML file of the sweep")
    parser.add_argument("--out", type=Path, help="file; results/benchmarks/sweep_NAME.json by default")
    given = parser.parse_args(arguments)
    study = read_study(str(given.study))
    folder = Path(study.folder)
    path = folder / "trials.json"
    require(path.is_file(), "study", str(given.study), f"there is no {path}; run sweep.py {given.study} to its end")
    trials = [trial for trial in json.loads(path.read_text()) if trial["state"] in ("complete", "diverged")]
    first = next(trial for trial in trials if trial["state"] == "complete")
    run = json.loads((folder / f"trial_{first['trial']}" / f"seed_{study.seeds[0]}" / "results.json").read_text())
    about = {"command": f"sweep.py {given.study} --processes 1", "commit": run["fit"]["commit"]}
    hardware = run["fit"]["device"].removeprefix("1 x ").replace("1 threads", "1 thread")
    record = about | {"hardware": hardware, "versions": run["fit"]["versions"], "rows": rows(study, trials)}
    print("\n".join(" | ".join(row.values()) for row in record["rows"]))
    out = given.out or Path(f"results/benchmarks/sweep_{given.study.stem}.json")
    out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def rows(study: StudyFile, trials: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each trial, by the first objective, the best first, and those that diverged last."""
    varied = [name for name in study.settings if len({str(trial["settings"][name]) for trial in trials}) > 1]
    first, direction = next(iter(study.objectives.items()))
    complete = [trial for trial in trials if trial["state"] == "complete"]
    ordered = sorted(complete, key=lambda trial: float(trial["objectives"][first]), reverse=direction == "maximize")
    return [row(study, trial, varied) for trial in ordered + [trial for trial in trials if trial not in complete]]


def row(study: StudyFile, trial: dict[str, Any], varied: list[str]) -> dict[str, str]:
    """The settings and objectives of a trial."""
    settings = {short(name, varied): f"{trial['settings'][name]:.3g}" for name in varied}
    if trial["state"] == "diverged":
        return settings | {title(name): "diverged" for name in study.objectives} | {"on the front": ""}
    means = {title(name): cell(name, column) for name, column in columns(study, trial)}
    return settings | means | validated(study, trial) | {"on the front": "yes" if trial["best"] else ""}


def short(name: str, names: list[str]) -> str:
    """The last part of a setting's name, and so many before it that no other setting has them."""
    parts = [part for part in name.split(".") if part != "init_args"]
    others = [[part for part in other.split(".") if part != "init_args"] for other in names if other != name]
    return next(
        ".".join(parts[-size:])
        for size in range(1, len(parts) + 1)
        if size == len(parts) or all(other[-size:] != parts[-size:] for other in others)
    )


def columns(study: StudyFile, trial: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Each objective and its values by seed."""
    return list(zip(study.objectives, map(list, zip(*trial["by_seed"], strict=True)), strict=True))


def validated(study: StudyFile, trial: dict[str, Any]) -> dict[str, str]:
    """The clean accuracy by ``train.py validate`` in the folders of the trial's trainings, if all have one."""
    folder = Path(study.folder) / f"trial_{trial['trial']}"
    records = [json.loads((folder / f"seed_{seed}" / "results.json").read_text()) for seed in study.seeds]
    if not all("validate" in record for record in records):
        return {}
    values = [record["validate"]["metrics"]["val/accuracy/clean"] for record in records]
    return {f"clean of {records[0]['validate']['samples']['val']}, %": cell("accuracy", values, digits=2)}


def title(name: str) -> str:
    """The title of an objective's column."""
    return SHORT.get(name, f"{name.removeprefix('val/accuracy/')}, %")


def cell(name: str, values: list[float], digits: int | None = None) -> str:
    """Mean and std over the seeds; accuracies in percent, by default to a tenth."""
    numbers = torch.tensor(values, dtype=torch.float64)
    std = float(numbers.std()) if len(values) > 1 else None
    scale, usual = (100, 1) if "accuracy" in name else (1, 2)
    digits = usual if digits is None else digits
    mean = f"{scale * float(numbers.mean()):.{digits}f}"
    return mean if std is None else f"{mean} ± {scale * std:.{digits}f}"


if __name__ == "__main__":
    main()
