"""Exact resumption: the run's seed, random numbers of each step, and what a checkpoint holds beside weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_modules.base.processes import AcrossProcesses
from lightning_modules.base.progress import correct_progress
from lightning_modules.base.rates import check_schedules, monitored_names
from lightning_modules.base.resumed_optimizers import ResumedOptimizers
from lightning_modules.base.settings import (
    Described,
    ResumeSettings,
    describe_data,
    describe_optimizers,
    require_same,
)
from robust.errors import require


class Resuming(AcrossProcesses):
    """Resumes bit for bit, and refuses a checkpoint that does not fit.

    Args:
        **settings: those of the next class in line.

    Attributes:
        resume_settings: what holds where a checkpoint was written with other optimizers, schedules or data: those of
            the ``"checkpoint"`` or the ``"config"``; without it such a resumption is refused.
        used_optimizers: classes and settings of optimizers and schedules as they are used in this training.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.resume_settings: ResumeSettings | None = None
        self.used_optimizers: Described = []
        self._resumed = ResumedOptimizers(None)
        self._monitored: dict[str, float] = {}
        self._seed: int | None = None
        self._evaluation_seed = 0

    def run_seed(self) -> int:
        """The seed of the training, which checkpoints keep, or else of the evaluation; equal in all processes."""
        return self._evaluation_seed if self._seed is None else self._seed

    def begin_run(self) -> None:
        """Begin without a checkpoint, which may be read later, and share the seed of evaluations."""
        if self.trainer.precision == "64-true":
            self.double()  # Lightning converts it only after it has loaded a checkpoint, whose weights would be rounded
        self._resumed = ResumedOptimizers(None)
        self._evaluation_seed = self.common_seed()

    def on_fit_start(self) -> None:
        """Take the run's seed, unless a checkpoint brought its own; compare the configured optimizers with its.

        Raises:
            SettingError: if they differ, and ``resume_settings`` does not say which are to be used.
        """
        if self._seed is None:
            self._seed = self.common_seed()
        self.used_optimizers = describe_optimizers(self.trainer)
        self._resumed.compare(self.trainer, self.used_optimizers, self.resume_settings)

    def on_train_start(self) -> None:
        """Give the optimizers the settings that were decided on; check the schedules."""
        self.used_optimizers = self._resumed.settle(self.trainer, self.used_optimizers, self.resume_settings)
        check_schedules(self.trainer)

    def seed_step(self, batch_idx: int) -> None:
        """Make a training step depend on (seed, epoch, batch) alone, so that a resumed run repeats it.

        What torch draws itself, as in dropout, depends on the process too.
        """
        key = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(hash(key) % 2**63)

    def monitored_metrics(self) -> dict[str, float]:
        """The metrics that schedules depend on; a resumed run has them from its checkpoint at first."""
        logged = self.trainer.callback_metrics
        names = [name for name in monitored_names(self.trainer) if name in logged]
        if names:  # what is logged of a training step is of this process's part of the batch
            values = torch.stack([logged[name].detach().double().to(self.device) for name in names])
            self._monitored |= dict(zip(names, self.mean_over_ranks(values).tolist(), strict=True))
        return self._monitored

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the method, the seed, and what a resumed run is compared with."""
        checkpoint["method"] = type(self).__name__
        checkpoint["seed"] = self._seed
        if self._trainer is None:  # without one there is nothing to go on with
            return
        checkpoint["optimizers"] = self.used_optimizers
        checkpoint["data"] = describe_data(self.trainer)
        checkpoint["monitored"] = self.monitored_metrics()
        correct_progress(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the seed back, and refuse what another method or another network saved.

        Raises:
            SettingError: if the checkpoint does not fit this module.
        """
        method = checkpoint.get("method")
        require(
            method == type(self).__name__,
            "ckpt_path",
            f"a checkpoint of {method}",
            f"this is {type(self).__name__}; give one of its checkpoints, or set model.class_path to that method",
        )
        self._check_state(checkpoint["state_dict"])
        self._seed = checkpoint["seed"]
        self._monitored = checkpoint.get("monitored", {})
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._resumed = ResumedOptimizers(checkpoint)
            require_same("data", describe_data(self.trainer), checkpoint.get("data", {}), self.resume_settings)

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        wrong = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
        require(
            not wrong,
            "ckpt_path",
            f"a checkpoint that differs in {len(wrong)} tensors, the first is {wrong[0] if wrong else None}",
            "configure the same networks as at training (the config.yaml beside the checkpoints has them)",
        )
