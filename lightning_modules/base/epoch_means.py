"""Means over an epoch's examples that a run resumed inside the epoch continues."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_modules.base.resuming import Resuming


class EpochMeans(Resuming):
    """A module that logs means over the examples of an epoch, at its end.

    Lightning's own means start anew in a run that is resumed inside an epoch. Arguments are those of :class:`Resuming`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._mean_epoch = 0
        self._mean_sums: dict[str, Tensor] = {}  # sum and number of the values of this process, (2,)

    def begin_run(self) -> None:
        """Drop the sums of an earlier training."""
        super().begin_run()
        if self.trainer.state.fn == "fit":
            self._mean_epoch, self._mean_sums = 0, {}

    def log_epoch_mean(self, name: str, values: Tensor) -> None:
        """Add the values of a batch's examples to the mean that the end of the epoch logs.

        Args:
            name: name of the metric.
            values: values of this process's examples, any shape.
        """
        if self._mean_epoch != self.current_epoch:
            self._mean_epoch, self._mean_sums = self.current_epoch, {}
        values = values.detach().double()
        added = torch.stack([values.sum(), values.new_tensor(values.numel())])
        before = self._mean_sums.get(name)
        self._mean_sums[name] = added if before is None else before.to(added) + added

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch."""
        if self._mean_epoch != self.current_epoch:  # nothing was added in this epoch
            return
        for name, (total, number) in self._common_sums().items():
            self.log(name, (total / number).to(torch.float32), sync_dist=True)

    def known_training_metrics(self) -> set[str]:
        """Names of the metrics that training steps have logged so far, those at the end of the epoch among them."""
        return {*super().known_training_metrics(), *self._mean_sums}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums of the epoch so far."""
        super().on_save_checkpoint(checkpoint)
        if self._trainer is not None:
            sums = {name: value.tolist() for name, value in self._common_sums().items()}
            checkpoint["epoch_means"] = {"epoch": self._mean_epoch, "sums": sums}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the sums: they are those of all processes, so that the first one continues them."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("epoch_means", {"epoch": 0, "sums": {}})  # absent in checkpoints of early versions
        first = self._trainer is None or self.trainer.is_global_zero
        self._mean_epoch = saved["epoch"]
        self._mean_sums = {
            name: torch.tensor(value, dtype=torch.float64, device=self.device) * first
            for name, value in saved["sums"].items()
        }

    def _common_sums(self) -> dict[str, Tensor]:
        """Sums and numbers over all processes."""
        processes = 1 if self._trainer is None else self.trainer.world_size
        return {name: self.mean_over_ranks(value) * processes for name, value in sorted(self._mean_sums.items())}
