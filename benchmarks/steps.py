r"""Time of a training step of each configuration over that of the first one, in one run.

    python benchmarks/steps.py [--threads 1] [--batches 20] [--rounds 2] [--out FILE] CASE [CASE ...]

A case has the arguments of ``train.py fit``, in quotes, behind ``NAME:`` if the table is to have a name for it:

    python benchmarks/steps.py "--config configs/adversarial_training/multi_norm_digits.yaml" \
        "--config configs/mng_ac/digits.yaml"

The cases take turns; each trains for some batches with its own settings, at full epsilon. A step lasts from Lightning's
start of a batch to its end: forward, attacks, backward, every optimizer. Its time is the mean over batches, since some
methods draw at random what to do. On CPU, time is the process's own over all its threads, which other load on the
machine hardly changes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from callbacks.machine import cpu_name, git_commit, installed_versions


class StepTime(Callback):
    """Records the time of each training step, in seconds."""

    seconds: list[float]

    def __init__(self) -> None:
        StepTime.seconds = []
        self.start = 0.0

    @staticmethod
    def now() -> float:
        """Time of the process on a CPU; wall time on a GPU, after its work has finished."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Start the clock."""
        self.start = self.now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Record the time since the start."""
        StepTime.seconds.append(self.now() - self.start)


def seconds(case: str, batches: int) -> float:
    """Mean time of a training step of the case."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = [*shlex.split(case), f"--trainer.default_root_dir={folder}", "--trainer.logger=false"]
        settings += ["--trainer.callbacks=[{class_path: benchmarks.steps.StepTime}]", "--test_after_fit=false"]
        settings += ["--trainer.max_epochs=1", f"--trainer.limit_train_batches={batches + 2}"]
        settings += [
            "--trainer.limit_val_batches=0",
            "--trainer.enable_progress_bar=false",
            "--epsilon_schedule.shape=constant",
        ]
        train.main(["fit", *settings])
    from benchmarks.steps import StepTime as Imported  # the configuration's class, since this file may be __main__

    return statistics.fmean(Imported.seconds[2:])  # the first steps allocate memory


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="CASE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the table as JSON to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    command, commit = shlex.join(["benchmarks/steps.py", *sys.argv[1:]]), git_commit()
    sys.argv = sys.argv[:1]  # LightningCLI warns of arguments that are not its own
    named = [_named(case) for case in args.cases]
    cases = dict(named)
    if len(cases) < len(named) or not all(cases.values()):
        parser.error("give each case another name, and arguments that begin with --")
    if args.out is not None and not args.out.parent.is_dir():
        parser.error(f"--out: there is no folder {args.out.parent}")
    rounds = [{name: seconds(case, args.batches) for name, case in cases.items()} for _ in range(args.rounds)]
    first = next(iter(cases))
    rows = []
    print("| case | step, ms | over the first |\n| --- | --- | --- |")
    for name in cases:
        ratio = statistics.median(times[name] / times[first] for times in rounds)
        step = 1000 * statistics.median(times[name] for times in rounds)
        rows.append({"case": name, "step, ms": f"{step:.3g}", "over the first": f"{ratio:.2f}"})
        print(f"| {' | '.join(rows[-1].values())} |")
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu_name()} x {args.threads} threads"
    print(f"\n{args.rounds} rounds of {args.batches} batches. {hardware}, commit {commit}, {installed_versions()}")
    if args.out is not None:
        about = {"command": command, "commit": commit, "hardware": hardware, "versions": installed_versions()}
        args.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def _named(case: str) -> tuple[str, str]:
    """A case's name and its arguments, which are its name if it has none."""
    name, _, arguments = case.partition(":")
    return (case, case) if case.lstrip().startswith("--") else (name, arguments)


if __name__ == "__main__":
    main()
