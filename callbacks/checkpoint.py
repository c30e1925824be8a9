"""Checkpoints: the best by a metric, and the last, also after an interruption."""

from __future__ import annotations

import fnmatch
import re
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor

from callbacks._atomic import AtomicCheckpointIO
from callbacks.interruption import InterruptedRunError, Interruption
from robust.errors import NonFiniteLossError, require
from robust.folders import remove_unfinished


def named_metrics(filename: str | None) -> list[str]:
    """The metrics in the template of a checkpoint's name, without ``epoch`` and ``step``."""
    names = re.findall(r"\{(.*?)[:\}]", filename or "")
    return [name for name in names if name not in ("epoch", "step")]


class Checkpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, except that ``last.ckpt`` always holds the last step and is written atomically.

    With ``monitor``, Lightning writes ``last.ckpt`` only at epochs among the best: a run that resumes from it loses
    the epochs since, and a test of it does not test the final weights. Unlike Lightning's settings,
    ``every_n_train_steps`` counts batches, and ``train_time_interval`` also works in manual optimization.

    In ``monitor``, ``*`` stands for any part of a name: ``val/certified_accuracy/linf_*`` is the certified accuracy in
    linf, whatever the model's epsilon.
    """

    stops_runs = True  # Interruption then lets this callback stop the run, after the save
    _continues = False  # whether the run resumes from a checkpoint in its own folder
    _given = False  # whether the user gave the folder
    _has_run = False  # whether the folder is its own

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and remove temporary files of killed processes.

        Raises:
            SettingError: if ``filename`` points outside the folder.
        """
        parts = Path(self.filename or "").parts
        inside = not Path(self.filename or "").is_absolute() and ".." not in parts
        require(inside, "checkpoint.filename", self.filename, "give a name inside checkpoint.dirpath")
        self._given = self.dirpath is not None and not self._has_run
        super().setup(trainer, pl_module, stage)
        self._continues = False
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage == "fit" and trainer.is_global_zero and self.dirpath is not None and "://" not in str(self.dirpath):
            remove_unfinished(Path(self.dirpath))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether the run continues in the folder of its checkpoint, before :meth:`load_state_dict`."""
        parent = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).resolve().parent
        self._continues = trainer.state.fn == "fit" and parent == Path(self.dirpath or "").resolve()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that a ``dirpath`` that was given holds no checkpoints of another run.

        Raises:
            SettingError: if it does.
        """
        folder = Path(self.dirpath or "")
        if self._given and not self._continues and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            found = min((path.name for path in folder.glob("*.ckpt")), default=None) if trainer.is_global_zero else None
            found = trainer.strategy.broadcast(found)
            remedy = f"it holds {found} of another run; give an empty folder, or resume from a checkpoint in it"
            require(found is None, "checkpoint.dirpath", str(folder), remedy)
        self._has_run = True

    def format_checkpoint_name(
        self, metrics: dict[str, Tensor], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        """The path of a checkpoint, named after its epoch, step and metrics.

        Raises:
            SettingError: if the name contains a metric that nothing logs; Lightning would insert 0.
        """
        for name in named_metrics(filename or self.filename):
            remedy = f"nothing logs it at this point; name one of {', '.join(sorted(metrics))}"
            require(name in metrics, "checkpoint.filename", name, remedy)
        return super().format_checkpoint_name(metrics, filename, ver, prefix)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the list of the best checkpoints; those in another folder stay with the run that wrote them.

        A run that continues in the folder of its checkpoint, perhaps after this was moved, replaces its ``last.ckpt``.
        """
        if self._continues:
            state_dict = self._in_this_folder(state_dict)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The dirpath has changed")
            super().load_state_dict(state_dict)

    def _in_this_folder(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state with the paths of the files that are in the folder now."""
        assert self.dirpath is not None

        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else path

        names = ("best_model_path", "kth_best_model_path")
        paths = {name: here(state_dict.get(name, "")) for name in names}
        best = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        last = here(f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        return state_dict | paths | {"dirpath": self.dirpath, "best_k_models": best, "last_model_path": last}

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if steps or time are due; after a signal, save and stop the run."""
        signum = self._interrupted(trainer)
        if (self._due(trainer) or signum) and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            if signum:
                self._save_stopped(trainer)
            elif self.monitor is not None and self.monitor not in candidates:
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
        if trainer.strategy.broadcast(passed):  # the processes' clocks differ
            self._last_time_checked = time.monotonic()
            return True
        return False

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        """Lightning's candidates, and the metric that a monitor with ``*`` names.

        Raises:
            SettingError: if the monitor names several metrics.
        """
        candidates = super()._monitor_candidates(trainer)
        names = sorted(fnmatch.filter(candidates, self.monitor)) if self.monitor else []
        require(len(names) <= 1, "checkpoint.monitor", self.monitor, f"it names {', '.join(names)}; give one of them")
        if self.monitor and names:
            candidates[self.monitor] = candidates[names[0]]
        return candidates

    @staticmethod
    def _interrupted(trainer: Trainer) -> int:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        interruption = next((callback for callback in callbacks if isinstance(callback, Interruption)), None)
        return 0 if interruption is None else interruption.signal_on_any_rank(trainer)

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Stop a run during its validation; a resumed run repeats the validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and (signum := self._interrupted(trainer)):
            self._last_global_step_saved = -1  # Lightning would skip a step that the last training batch saved
            _restore_averaged(trainer, pl_module)
            self._save_stopped(trainer)
            raise InterruptedRunError(signum)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the checkpoint if it is among the best, and ``last.ckpt`` in any case."""
        super().on_train_epoch_end(trainer, pl_module)
        self._save_last_of_epoch(trainer)  # if there was a validation, it has saved this step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save as in :meth:`on_train_epoch_end`, if Lightning saves after validation."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_last_of_epoch(trainer)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Save ``last.ckpt``: a file where ``save_last: link`` would link to the checkpoint of an earlier step."""
        save_last = self.save_last
        if save_last == "link" and self._last_global_step_saved != trainer.global_step:
            self.save_last = True
        try:
            super()._save_last_checkpoint(trainer, monitor_candidates)
        finally:
            self.save_last = save_last

    def _save_stopped(self, trainer: Trainer) -> None:
        """Write ``last.ckpt`` of a stopped run even if ``save_last`` is false, since the run continues from it."""
        save_last, self.save_last = self.save_last, self.save_last or True
        try:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        finally:
            self.save_last = save_last

    def _save_last_of_epoch(self, trainer: Trainer) -> None:
        due = self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        # on_train_end comes after averages of weights have replaced the weights, which a resumed run needs
        due = due or trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = due or 0 <= trainer.max_steps <= trainer.global_step
        # Lightning's test also skips a step that has been saved
        if self.save_last and due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final weights if the last save is older."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if ``save_on_exception`` is set.

        Nothing is saved after a non-finite loss or an interruption, or if a weight is NaN or infinite.
        """
        finite = all(bool(weight.isfinite().all()) for weight in pl_module.parameters())
        if finite and not isinstance(exception, NonFiniteLossError | InterruptedRunError):
            if self.save_on_exception and trainer.validating and not trainer.sanity_checking:
                _restore_averaged(trainer, pl_module)
            super().on_exception(trainer, pl_module, exception)


def _restore_averaged(trainer: Trainer, module: LightningModule) -> None:
    """Give the module its own weights again if it has averages of them, as in a validation of a training."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, WeightAveraging):
            callback.on_validation_epoch_end(trainer, module)
