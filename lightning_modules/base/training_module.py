"""What every method shares, composed of one file a concern: inputs, resuming, processes, descent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from lightning_modules.base.descent import Descent
from lightning_modules.base.inputs import CheckedInputs
from lightning_modules.base.numbering import number_steps
from lightning_modules.base.rates import step_schedules
from lightning_modules.base.resuming import Resuming

Batch = tuple[Tensor, Tensor]


class TrainingModule(CheckedInputs, Resuming, Descent, ABC):
    """Networks with optimizers that the method steps itself, in runs that resume bit for bit.

    Subclasses write ``training_step``, and end each step in :meth:`descend`. Those with several optimizers list them in
    :meth:`trained`. Images are float tensors (B, C, H, W) in [0, 1]. Arguments are those of :class:`Descent`.

    Attributes:
        data_indices: indices in the data of the examples of the evaluation batch that this process has.
    """

    data_indices: range = range(0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Number the examples of its steps: what is drawn for them is the same on any number of processes."""
        super().__init_subclass__(**kwargs)
        number_steps(cls)

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One batch of the method's algorithm."""

    @property
    def partially_used(self) -> list[str]:
        """Names of the parameters that some steps do not use; DDP has to search for these."""
        return []

    def setup(self, stage: str) -> None:
        """Check that networks, data and trainer fit together before anything runs.

        Raises:
            SettingError: naming the setting that does not fit.
        """
        self.check_data()
        self.check_trainer(stage)
        self.check_strategy(self.partially_used if stage == "fit" else [])
        self.begin_run()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check the batch, bring the schedules to it, and fix its random numbers.

        Lightning's hooks at the ends of an epoch are not called on resuming from a checkpoint of its last batch.
        """
        self.check_labelled(batch, f"train batch {batch_idx}", self.training_batches)
        step_schedules(self.trainer, batch_idx, self.monitored_metrics())
        self.seed_step(batch_idx)
