"""SIGTERM and Ctrl-C: a training finishes its batch, writes a checkpoint and stops; other runs stop at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRunError(SystemExit):
    """A signal stopped the run; the process exits with 128 plus the signal's number: 143 or 130.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class Interruption(Callback):
    """Stops a training after the batch in which the first signal came, in all processes; a second signal stops at once.

    :class:`callbacks.Checkpoint` writes ``last.ckpt`` first. Without it, the training stops before the next batch.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._handle: Any = None
        self._handlers: dict[int, Any] = {}

    def signal_on_any_rank(self, trainer: Trainer) -> int:
        """The number of a signal that any process received, 0 if none did; call it in all processes."""
        if trainer.world_size == 1:
            return self._signum
        came = trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False)
        return (self._signum or signal.SIGTERM) if came else 0

    def _install(self, trainer: Trainer) -> None:
        """Replace Lightning's handlers, which call a collective that the other processes do not call."""
        if threading.current_thread() is not threading.main_thread() or self._handlers:
            return

        def handle(signum: int, frame: FrameType | None) -> None:
            batches = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
            if self._signum or not batches:
                raise InterruptedRunError(signum)
            self._signum = signum
            sys.stderr.write("\nStopping after this batch; a second signal stops at once.\n")

        self._signum, self._handle = 0, handle
        self._handlers = {signum: signal.signal(signum, handle) for signum in SIGNALS}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous handlers, unless Lightning has already restored the ones before its own."""
        for signum, handler in self._handlers.items():
            if signal.getsignal(signum) is self._handle:
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the previous handlers; Lightning calls no teardown after an exception."""
        self.teardown(trainer, pl_module, "")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop the run, unless a checkpoint callback does so after it has saved."""
        self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the run, so that no test follows the training."""
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(getattr(callback, "stops_runs", False) for callback in callbacks):
            self.stop(trainer)

    def stop(self, trainer: Trainer) -> None:
        """Raise an :class:`InterruptedRunError` if a signal came."""
        if signum := self.signal_on_any_rank(trainer):
            raise InterruptedRunError(signum)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._install(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._install(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._install(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._install(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._install(trainer)
