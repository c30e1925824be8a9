"""Exact resumption: the run's seed, the random numbers of each step, the checkpoint's entries besides the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_modules.base.progress import correct_progress, warn_of_ended_training
from lightning_modules.base.rates import check_monitors, check_schedules, monitored_names
from lightning_modules.base.resumed_optimizers import ResumedOptimizers
from lightning_modules.base.settings import (
    Description,
    ResumeSettings,
    describe_data,
    describe_optimizers,
    require_same,
)
from lightning_modules.base.training_cost import CountedTraining
from robust.checkpoints import fits
from robust.errors import require
from robust.random import seed_generators
from robust.seeds import seed


class Resuming(CountedTraining):
    """A module that resumes bit for bit and refuses a checkpoint that does not fit.

    Args:
        **settings: settings of the next class in the method resolution order.

    Attributes:
        resume_settings: source of the settings to use if the checkpoint has other optimizers, schedules or data:
            ``"checkpoint"`` or ``"config"``. None refuses such a checkpoint.
        used_optimizers: classes and settings of the optimizers and schedules that this training uses.
        batches_started: number of training batches that this run has begun.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.resume_settings: ResumeSettings | None = None
        self.used_optimizers: Description = []
        self._resumed = ResumedOptimizers(None)
        self._monitored: dict[str, float] = {}
        self.batches_started = 0
        self._seed: int | None = None
        self._evaluation_seed = 0

    def run_seed(self) -> int:
        """The seed of the training, which checkpoints contain, else of the evaluation; equal in all processes."""
        return self._evaluation_seed if self._seed is None else self._seed

    @property
    def training_seed(self) -> int | None:
        """The seed of the training, which a resumed run and a test keep; None before the training."""
        return self._seed

    def begin_run(self) -> None:
        """Drop an earlier checkpoint or training, and set the seed of evaluations in all processes."""
        if self.trainer.precision == "64-true":
            self.double()  # Lightning would convert it after loading a checkpoint, whose weights would be rounded
        self._resumed = ResumedOptimizers(None)
        self.batches_started = 0
        if self.trainer.state.fn == "fit":
            self._seed, self._monitored = None, {}  # a checkpoint to resume is loaded later
        self._evaluation_seed = self.common_seed()

    def on_fit_start(self) -> None:
        """Set the run's seed unless a checkpoint set it, and compare the optimizers with the checkpoint's.

        Raises:
            SettingError: if the optimizers differ and ``resume_settings`` is None, or a schedule has no monitor.
        """
        check_monitors(self.trainer)
        if self._seed is None:
            self._seed = self.common_seed()
        self.used_optimizers = describe_optimizers(self.trainer)
        self._resumed.compare(self.trainer, self.used_optimizers, self.resume_settings)

    def on_train_start(self) -> None:
        """Apply the chosen optimizer settings and check the schedules."""
        super().on_train_start()
        self.used_optimizers = self._resumed.apply(self.trainer, self.used_optimizers, self.resume_settings)
        check_schedules(self.trainer)

    def seed_step(self, batch_idx: int) -> None:
        """Seed torch by (seed, epoch, batch, process), so that the step is the same in a resumed run."""
        seed_generators(seed(self.run_seed(), self.current_epoch, batch_idx, self.global_rank), self.device)

    def monitored_metrics(self) -> dict[str, float]:
        """The metrics on which schedules depend; a resumed run starts with the checkpoint's."""
        logged = self.trainer.callback_metrics
        names = [name for name in monitored_names(self.trainer) if name in logged]
        if names:  # averaged, since a training step logs metrics of this process's part of the batch
            values = torch.stack([logged[name].detach().double().to(self.device) for name in names])
            self._monitored |= dict(zip(names, self.mean_over_ranks(values).tolist(), strict=True))
        return self._monitored

    def known_training_metrics(self) -> set[str]:
        """Names of the metrics that training steps have logged so far."""
        return {name for name in self.trainer.callback_metrics if not name.startswith("val/")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the method, the seed, and the settings with which a resumed run is compared."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["method"] = type(self).__name__
        checkpoint["seed"] = self._seed
        if self._trainer is None:
            return
        checkpoint["optimizers"] = self.used_optimizers
        checkpoint["data"] = describe_data(self.trainer)
        checkpoint["monitored"] = self.monitored_metrics()
        correct_progress(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the seed, and refuse a checkpoint of another method or network.

        Raises:
            SettingError: if the checkpoint does not fit this module.
        """
        super().on_load_checkpoint(checkpoint)
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
            warn_of_ended_training(checkpoint, self.trainer)
            require_same("data", describe_data(self.trainer), checkpoint.get("data", {}), self.resume_settings)

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        wrong = sorted(own.keys() ^ state.keys()) or [k for k in own if not fits(own[k], state[k])]
        require(
            not wrong,
            "ckpt_path",
            f"a checkpoint that differs in {len(wrong)} tensors, the first is {wrong[0] if wrong else None}",
            "configure the same networks as in its training (see the config.yaml beside the checkpoints)",
        )
