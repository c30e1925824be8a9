"""Increases the size of the threat model during training."""

from __future__ import annotations

import math
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from lightning_modules.base import RobustClassifier
from robust.errors import require

DEFAULTS = {"start_epoch": 1, "length": 1, "middle": 0.25, "exponent": 4.0}
USED = {"constant": (), "linear": ("start_epoch", "length"), "smoothed": tuple(DEFAULTS)}


class EpsilonScheduler(Callback):
    """Sets the module's ``ramp`` before every training batch; it depends on the epoch and the batch alone.

    ``linear`` rises linearly over ``length`` epochs (contextual budgets, Appendix A, MNIST). ``smoothed``
    rises like a power first, then linearly, with continuous value and slope (Gowal et al. 2018; Appendix A,
    CIFAR-10). ``constant`` is the full size from the start. Evaluations always use the full size.

    Args:
        shape: shape of the ramp.
        start_epoch: epoch, counted from 1, at whose first batch the ramp begins; before it the ramp is 0.
        length: number of epochs in which the ramp rises from 0 to 1.
        middle: fraction of the ramp's length at which ``smoothed`` becomes linear.
        exponent: exponent of ``smoothed`` before ``middle``.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        shape: Literal["constant", "linear", "smoothed"] = "constant",
        start_epoch: int = 1,
        length: int = 1,
        middle: float = 0.25,
        exponent: float = 4.0,
    ) -> None:
        name = "epsilon_schedule"
        require(shape in USED, f"{name}.shape", shape, "give constant, linear or smoothed")
        require(start_epoch >= 1, f"{name}.start_epoch", start_epoch, "epochs count from 1")
        require(length >= 1, f"{name}.length", length, "give at least 1 epoch, or shape constant")
        require(0 < middle < 1, f"{name}.middle", middle, "give a fraction of the ramp in (0, 1)")
        require(exponent > 1, f"{name}.exponent", exponent, "give a power above 1")
        self.shape, self.start_epoch, self.length = shape, start_epoch, length
        self.middle, self.exponent = middle, exponent
        self._trains = True

    def value(self, epoch: int, batch: int, batches: int) -> float:
        """Fraction of the full epsilon, in [0, 1].

        Args:
            epoch: number of the epoch, from 1.
            batch: number of the batch in the epoch, from 1.
            batches: number of batches in an epoch.
        """
        if self.shape == "constant":
            return 1.0
        steps = (epoch - self.start_epoch) * batches + batch - 1
        if self.shape == "linear":
            return min(max(steps / (self.length * batches), 0.0), 1.0)
        return self._smoothed(steps, self.length * batches)

    def _smoothed(self, steps: int, length: int) -> float:
        middle = int(self.middle * length)
        if steps <= 0:
            return 0.0
        if steps >= length:
            return 1.0
        scale = 1 / ((length - middle) * self.exponent + middle)  # makes value and slope continuous at the middle
        if steps < middle:
            return float(scale * middle * (steps / middle) ** self.exponent)
        at_middle = scale * middle
        return at_middle + (1 - at_middle) * (steps - middle) / (length - middle)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store whether the run trains, since an evaluation uses no schedule."""
        self._trains = stage == "fit"

    def on_fit_start(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Check that there is a threat model to ramp.

        Raises:
            SettingError: if ``shape`` is not constant and the module's training has no epsilon, or if ``shape`` is
                constant and the module needs a ramp.
        """
        fits = self.shape == "constant" or _is_ramped(pl_module)
        remedy = f"the training of {type(pl_module).__name__} has no epsilon to ramp; give constant"
        require(fits, "epsilon_schedule.shape", self.shape, remedy)
        idle = self.shape == "constant" and isinstance(pl_module, RobustClassifier) and pl_module.needs_ramp
        remedy = "alpha_low_start and interval_weight have no effect without a ramp; give linear or smoothed"
        require(not idle, "epsilon_schedule.shape", self.shape, remedy)
        settings = {name: getattr(self, name) for name in DEFAULTS if name not in USED[self.shape]}
        unused = ", ".join(f"{name} {value}" for name, value in settings.items() if value != DEFAULTS[name])
        if unused:
            remedy = "give linear or smoothed" if self.shape == "constant" else "give smoothed"
            rank_zero_warn(f"epsilon_schedule.shape: got '{self.shape}', which takes no {unused}; {remedy}")

    def on_train_start(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Warn if the epochs or steps end before the ramp, or with it: the first full batch is the one behind it.

        Raises:
            SettingError: if there is a ramp and the number of batches in an epoch is not known.
        """
        counted = self.shape == "constant" or math.isfinite(trainer.num_training_batches)
        remedy = "the loader has no length, and the ramp counts batches; set trainer.limit_train_batches to a number"
        require(counted, "epsilon_schedule.shape", self.shape, remedy)
        end = self.start_epoch + self.length - 1
        limits = {"trainer.max_epochs": trainer.max_epochs, "trainer.max_steps": trainer.max_steps}
        lengths = {"trainer.max_epochs": 1, "trainer.max_steps": trainer.num_training_batches}
        for setting, limit in limits.items():
            if self.shape != "constant" and limit is not None and 0 <= limit <= end * lengths[setting]:
                where = "with" if limit == end * lengths[setting] else "after"
                self._warn(f"the ramp ends with epoch {end}, {where} {setting} {limit}", pl_module)
                return

    def on_train_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Warn if a time limit or an early stop ended the training before the ramp; reset the ramp.

        A later training without a schedule has the full epsilon.
        """
        if self.shape != "constant" and trainer.should_stop and pl_module.ramp < 1:
            self._warn(f"the training stopped in epoch {trainer.current_epoch}, inside the ramp", pl_module)
        if _is_ramped(pl_module):
            pl_module.ramp = 1.0

    @staticmethod
    def _warn(why: str, module: RobustClassifier) -> None:
        remedy = f"epsilon never reaches model.epsilon {module.epsilon}. Give a shorter ramp or a longer training."
        rank_zero_warn(f"epsilon_schedule.length: {why}; {remedy}")

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, batch: Any, batch_idx: int
    ) -> None:
        """Set the ramp and log epsilon, for methods that use them."""
        if not _is_ramped(pl_module):
            return
        batches = 1 if self.shape == "constant" else int(trainer.num_training_batches)
        pl_module.ramp = self.value(trainer.current_epoch + 1, batch_idx + 1, batches)
        pl_module.log("train/epsilon", pl_module.current_epsilon)

    def state_dict(self) -> dict[str, Any]:
        """The settings, by which a resumed run with other settings warns."""
        return {name: getattr(self, name) for name in ("shape", *DEFAULTS)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the resumed run's schedule differs from the checkpoint's."""
        if not self._trains:
            return
        changed = {name: (old, getattr(self, name)) for name, old in state_dict.items() if old != getattr(self, name)}
        for name, (old, new) in changed.items():
            rank_zero_warn(f"epsilon_schedule.{name}: the checkpoint was trained with {old!r}, this run has {new!r}")


def _is_ramped(module: LightningModule) -> bool:
    return isinstance(module, RobustClassifier) and module.ramped
