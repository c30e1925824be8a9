"""The trial of an evaluation on a blank image, before anything is trained or evaluated."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from callbacks._stages import Stage, StageCallback
from lightning_modules.base import RobustClassifier
from robust.errors import SettingError
from robust.modes import attack_mode
from robust.random import global_seed


class TriedCallback(StageCallback):
    """A callback of stages that is tried once a run on a blank image, as soon as the images' shape is known.

    Args:
        seed: seed of the trial's draws.
        where_possible: if the callback does not fit the module, leave it out with a warning and a line in the record,
            instead of raising an error.
        *schedule: arguments of :class:`StageCallback`.

    Attributes:
        skipped: reasons why the callback or a part of it is left out, by the name of its class or of the part.
    """

    def __init__(self, seed: int, where_possible: bool, *schedule: int | None) -> None:
        super().__init__(*schedule)
        self.seed, self.where_possible = seed, where_possible
        self.skipped: dict[str, str] = {}
        self._tried = False

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Check, on a blank image ``x`` (1, C, H, W) of label ``y`` (1,), that the evaluation fits the module.

        Raises:
            SettingError: if it does not fit.
        """

    def skip(self, what: str, why: Exception) -> None:
        """Leave out the evaluation or a part of it, with a warning and a line in the record."""
        reason = " ".join(str(why).split())
        self.skipped[what] = reason.partition("; ")[2] or reason  # without the setting and its value
        rank_zero_warn(f"{what} is left out: {self.skipped[what]}")

    # -- hooks -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run."""
        super().setup(trainer, pl_module, stage)
        self._tried, self.skipped = False, {}

    def is_due(self, stage: Stage, trainer: Trainer, batch_idx: int) -> bool:
        """Whether to run on this batch."""
        return type(self).__name__ not in self.skipped and super().is_due(stage, trainer, batch_idx)

    def on_fit_start(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Try the evaluation before training, if the data module gives the images' shape."""
        super().on_fit_start(trainer, pl_module)
        self._try(trainer, pl_module, None)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, batch: Any, batch_idx: int
    ) -> None:
        """Try the evaluation before the first training step, unless it has been tried."""
        self._try(trainer, pl_module, batch)

    def on_validation_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Try the evaluation before the first validation batch."""
        self._try(trainer, pl_module, batch)

    def on_test_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Try the evaluation before the first test batch."""
        self._try(trainer, pl_module, batch)

    def _try(self, trainer: Trainer, module: RobustClassifier, batch: Any) -> None:
        """Try the evaluation once a run, on a blank image, as soon as the images' shape is known."""
        if self._tried:
            return
        shape = getattr(module.data_module, "image_shape", None) or _image_shape(batch)
        if shape is None:
            return
        self._tried = True
        module.note_image_shape(shape)
        dtype = next((weight.dtype for weight in module.parameters()), torch.float32)
        with attack_mode(module, "eval"), global_seed(module.device, self.seed):
            blank = torch.zeros(1, *shape, dtype=dtype, device=module.device)
            try:
                self.try_out(module, blank, torch.zeros(1, dtype=torch.long, device=module.device))
            except SettingError as error:
                if not self.where_possible:
                    raise
                self.skip(type(self).__name__, error)


def _image_shape(batch: Any) -> tuple[int, int, int] | None:
    """Shape (C, H, W) of the images in a batch, or in the first of nested batches; None if there are no images."""
    while isinstance(batch, list | tuple) and len(batch) > 0:
        batch = batch[0]
    if not isinstance(batch, Tensor) or batch.dim() != 4:
        return None
    _, channels, height, width = batch.shape
    return channels, height, width
