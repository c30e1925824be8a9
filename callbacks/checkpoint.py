"""Checkpoints: the best by a metric, and the last, also of a run that is stopped."""

from __future__ import annotations

import re
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from callbacks._atomic import AtomicCheckpointIO, remove_unfinished
from callbacks.interruption import InterruptedRunError, Interruption
from robust.errors import NonFiniteLossError, require


def named_metrics(filename: str | None) -> list[str]:
    """The metrics in the template of a checkpoint's name, beside ``epoch`` and ``step``."""
    names = re.findall(r"\{(.*?)[:\}]", filename or "")
    return [name for name in names if name not in ("epoch", "step")]


class Checkpoint(ModelCheckpoint):
    """Lightning's, whose ``last.ckpt`` is always that of the last step, written whole or not at all.

    With ``monitor``, Lightning's own is of the last epoch that was among the best: a run that goes on from it would
    lose the epochs since, and a test of it would not be one of the final weights. ``every_n_train_steps`` counts
    batches and ``train_time_interval`` works, where Lightning's does not in manual optimization.
    """

    stops_runs = True  # for Interruption, which leaves it to this callback

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and clear what a killed process has left there.

        Raises:
            SettingError: if ``filename`` leaves the folder.
        """
        parts = Path(self.filename or "").parts
        inside = not Path(self.filename or "").is_absolute() and ".." not in parts
        require(inside, "checkpoint.filename", self.filename, "give a name inside checkpoint.dirpath")
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage == "fit" and trainer.is_global_zero and self.dirpath is not None and "://" not in str(self.dirpath):
            remove_unfinished(Path(self.dirpath))

    def format_checkpoint_name(
        self, metrics: dict[str, Tensor], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        """The path of a checkpoint, named after its epoch, step and metrics.

        Raises:
            SettingError: if the name has a metric that nothing logs; Lightning would write a 0.
        """
        for name in named_metrics(filename or self.filename):
            remedy = f"nothing logs it at this point; name one of {', '.join(sorted(metrics))}"
            require(name in metrics, "checkpoint.filename", name, remedy)
        return super().format_checkpoint_name(metrics, filename, ver, prefix)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the best; those of another folder are left to the run that wrote them."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The dirpath has changed")
            super().load_state_dict(state_dict)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where steps or time are due; and where the run is to stop, stop it."""
        signum = self._interrupted(trainer)
        if (self._due(trainer) or signum) and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            if signum or (self.monitor is not None and self.monitor not in candidates):
                self._save_last_checkpoint(trainer, candidates)
            else:
                self._save_topk_checkpoint(trainer, candidates)
                self._save_last_checkpoint(trainer, candidates)
        if signum:
            raise InterruptedRunError(signum)

    def _due(self, trainer: Trainer) -> bool:
        if self._every_n_train_steps >= 1 and trainer.global_step % self._every_n_train_steps == 0:
            return True
        interval: timedelta | None = self._train_time_interval
        if interval is None:
            return False
        assert self._last_time_checked is not None
        passed = time.monotonic() - self._last_time_checked >= interval.total_seconds()
        if trainer.strategy.broadcast(passed):  # clocks differ
            self._last_time_checked = time.monotonic()
            return True
        return False

    @staticmethod
    def _interrupted(trainer: Trainer) -> int:
        found = [each for each in trainer.callbacks if isinstance(each, Interruption)]  # type: ignore[attr-defined]
        return found[0].agreed(trainer) if found else 0

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Stop a run in the middle of its validation; one that goes on begins the validation anew."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and (signum := self._interrupted(trainer)):
            self._last_global_step_saved = (
                -1
            )  # what was saved behind the last training batch is not lost by saving anew
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            raise InterruptedRunError(signum)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best, and the last also where it is not among them."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._save_last_of_epoch(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same, where Lightning saves here."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_last_of_epoch(trainer)

    def _save_last_of_epoch(self, trainer: Trainer) -> None:
        due = self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if self.save_last and due and not self._should_skip_saving_checkpoint(trainer):  # skipped where it is saved
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final weights where the last save is older."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """With ``save_on_exception``, save; but no weights that are not finite, nor what a loss of NaN has stopped."""
        finite = all(bool(weight.isfinite().all()) for weight in pl_module.parameters())
        if finite and not isinstance(exception, NonFiniteLossError | InterruptedRunError):
            super().on_exception(trainer, pl_module, exception)
