"""The record of a run: a table on the terminal and ``results.json`` in the log folder."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

_SHARES = (
    "accuracy",
    "accuracy_curve",
    "a_nat",
    "a_rob",
    "a_sa",
    "a_tr",
    "r2_share",
    "r2_failed",
    "budget_order",
)  # and whatever ends in _error: shown in percent
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "auto-LiRPA", "numpy")


class Results(Callback):
    """Writes what was measured, and how, at the end of ``fit``, ``validate`` and ``test``.

    ``results.json`` holds ``metrics`` (name to value; errors and accuracies are fractions in [0, 1]) and beside them
    ``command``, ``config``, ``optimizers`` (as they were used), ``seed``, ``commit``, ``versions``, ``device``,
    ``samples`` and ``wall_time`` (seconds).

    Attributes:
        config: the run's settings as plain data; the command line fills it.
    """

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self._samples: dict[str, int] = {}
        self._wall_time: dict[str, float] = {}
        self._start = 0.0
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._start = time.perf_counter()
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # asked in all processes, or they hang

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record training and the last validation."""
        self._record(trainer, pl_module, "fit", {"train": trainer.train_dataloader, "val": trainer.val_dataloaders})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a validation that is not part of training."""
        if trainer.state.fn == "validate":
            self._record(trainer, pl_module, "validate", {"val": trainer.val_dataloaders})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the test."""
        self._record(trainer, pl_module, "test", {"test": trainer.test_dataloaders})

    def _record(self, trainer: Trainer, module: LightningModule, stage: str, loaders: dict[str, Any]) -> None:
        self._metrics |= {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        lists = {name: getattr(loader, "flattened", loader) for name, loader in loaders.items()}  # of a CombinedLoader
        first = {name: loader[0] if isinstance(loader, list) else loader for name, loader in lists.items()}
        self._samples |= {name: len(loader.dataset) for name, loader in first.items() if hasattr(loader, "dataset")}
        self._wall_time[stage] = round(time.perf_counter() - self._start, 1)
        if not trainer.is_global_zero:
            return
        path = self._folder / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._results(trainer, module), indent=2) + "\n")
        self._print(stage, path)

    def _results(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        return {
            "metrics": self._metrics,
            "command": " ".join(sys.argv),
            "method": type(module).__name__,
            "epochs": trainer.current_epoch,
            "seed": self.config.get("seed_everything"),
            "commit": git_commit(),
            "versions": {"python": platform.python_version(), **installed_versions()},
            "device": describe_device(trainer),
            "optimizers": getattr(module, "used_optimizers", []),
            "samples": self._samples,
            "wall_time": self._wall_time,
            "config": self.config,
        }

    def _print(self, stage: str, path: Path) -> None:
        table = Table(title=f"Results of {stage} ({self._wall_time[stage]:.0f} s)")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in self._metrics.items():
            table.add_row(name, f"{value:.2%}" if _is_share(name) else f"{value:.4g}")
        console = Console()
        console.print(table)
        console.print(f"Written to {path}", soft_wrap=True)


def git_commit() -> str | None:
    """Commit of the checkout this file is in, with ``-dirty`` where tracked files differ; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def installed_versions() -> dict[str, str | None]:
    """Versions of the packages that results depend on, None where one is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def describe_device(trainer: Trainer) -> str:
    """Kind and number of the devices of a run."""
    if trainer.strategy.root_device.type == "cuda":
        name = torch.cuda.get_device_name(trainer.strategy.root_device)
    else:
        name = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    return f"{trainer.world_size} x {name}"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _is_share(name: str) -> bool:
    """Whether a figure ``stage/kind/...`` is an error or an accuracy."""
    kind = name.split("/")[1] if "/" in name else name
    return (kind.endswith("_error") or kind in _SHARES) and not name.endswith("effective_samples")
