"""Base of every method, composed of one file for each concern: inputs, resuming, processes, descent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from lightning_modules.base.descent import Descent
from lightning_modules.base.epoch_means import EpochMeans
from lightning_modules.base.inputs import CheckedInputs, end_averages_last
from lightning_modules.base.numbering import number_steps
from lightning_modules.base.rates import check_training_monitors, step_schedules

Batch = tuple[Tensor, Tensor]


class TrainingModule(CheckedInputs, EpochMeans, Descent, ABC):
    """A module that steps its optimizers itself and resumes bit for bit.

    Subclasses write ``training_step`` and call :meth:`descend` at its end. Those with several optimizers list them in
    ``optimizer_specs``. Images are float tensors (B, C, H, W) in [0, 1]. Arguments are those of :class:`Descent`.

    Attributes:
        data_indices: indices in the data of this process's examples in the current evaluation batch.
    """

    data_indices: range = range(0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Number the examples in the steps of ``cls``, so that draws do not depend on the number of processes."""
        super().__init_subclass__(**kwargs)
        number_steps(cls)

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Train on one batch by the method's algorithm."""

    @property
    def partially_used(self) -> list[str]:
        """Names of the parameters that some steps do not use; DDP then has to search for unused parameters."""
        return []

    def setup(self, stage: str) -> None:
        """Check that networks, data and trainer fit together before the run starts.

        Raises:
            SettingError: if a setting does not fit.
        """
        self.check_data()
        self.check_trainer(stage)
        self.check_loaders()
        end_averages_last(self.trainer)
        self.check_strategy(self.partially_used if stage == "fit" else [])
        self.begin_run()
        self._metric_attributes = None  # Lightning caches the identities of metrics, which a copied module must not use

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check the batch, step the schedules, and seed the step.

        Schedules are stepped here because Lightning skips its hooks at the end of an epoch when it resumes from a
        checkpoint of the epoch's last batch.
        """
        self.check_labelled(batch, f"train batch {batch_idx}", self.training_batches)
        if self.batches_started == 1:
            check_training_monitors(self.trainer, self.known_training_metrics())
        self.batches_started += 1
        self.begin_batch()
        step_schedules(self.trainer, batch_idx, self.monitored_metrics())
        self.seed_step(batch_idx)
        self.start_counting()
