r"""Time of a training step of each configuration over that of the first one, in one run.

    python benchmarks/steps.py [--threads 1] [--batches 20] [--rounds 2] CASE [CASE ...]

A case has the arguments of ``train.py fit``, in quotes:

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
from callbacks.results import cpu_name, git_commit, installed_versions


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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sys.argv = sys.argv[:1]  # LightningCLI warns of arguments that are not its own
    rounds = [{case: seconds(case, args.batches) for case in args.cases} for _ in range(args.rounds)]
    print("| case | step (s) | over the first |\n| --- | --- | --- |")
    for case in args.cases:
        ratio = statistics.median(times[case] / times[args.cases[0]] for times in rounds)
        print(f"| `{case}` | {statistics.median(times[case] for times in rounds):.3g} | {ratio:.2f} |")
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu_name()} x {args.threads} threads"
    print(
        f"\n{args.rounds} rounds of {args.batches} batches. {hardware}, commit {git_commit()}, {installed_versions()}"
    )


if __name__ == "__main__":
    main()
