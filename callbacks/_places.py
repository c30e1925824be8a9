"""Where the examples of a batch are in the data, and what is written beside the figures."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor


class Places:
    """Counts the examples that this process has evaluated.

    Evaluation gives process r of n the examples r, r + n, r + 2n, ... of the data.

    Attributes:
        last: indices (B,) of the last batch in the data.
        rows: the same as a range.
    """

    def __init__(self) -> None:
        self._seen = 0
        self.last = torch.zeros(0, dtype=torch.long)
        self.rows = range(0)

    def advance(self, trainer: Trainer, x: Tensor) -> Tensor:
        """Indices (B,) of the next batch ``x`` (B, ...)."""
        first = trainer.global_rank + trainer.world_size * self._seen
        self._seen += len(x)
        self.rows = range(first, first + trainer.world_size * len(x), trainer.world_size)
        self.last = torch.arange(self.rows.start, self.rows.stop, self.rows.step, device=x.device)
        return self.last


def write_figure(trainer: Trainer, name: str, figure: Figure, path: Path) -> None:
    """To TensorBoard and to a file."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped  # what self.log counts by
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
