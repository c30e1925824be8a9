"""What a record says of the machine and the code: processor, versions and commit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pytorch_lightning import Trainer

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "auto-LiRPA", "numpy")


@cache
def git_commit() -> str | None:
    """Commit of this file's checkout at the first call, with ``-dirty`` if tracked files differ; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


@cache
def installed_versions() -> dict[str, str | None]:
    """Versions of the packages on which results depend; None for a package that is not installed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def describe_device(trainer: Trainer) -> str:
    """Kind and number of the devices of a run."""
    if trainer.strategy.root_device.type == "cuda":
        name = torch.cuda.get_device_name(trainer.strategy.root_device)
    else:
        name = f"{cpu_name()}, {torch.get_num_threads()} threads"
    return f"{trainer.world_size} x {name}"


def cpu_name() -> str:
    """Model of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
