"""Writes the predictions of ``predict`` to a file."""

from __future__ import annotations

import csv
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.utilities import rank_zero_info

from callbacks._atomic import replacing
from callbacks._folders import log_folder
from lightning_modules.base import TrainingModule


class Predictions(Callback):
    """Writes ``predictions.csv`` in the log folder: sample (its index in the data), label (if any), predicted class.

    With several processes, each process writes its own samples to ``predictions_<rank>.csv``.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, int | str, int]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Reset; a stopped prediction may have left rows."""
        self._rows = []

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Store a batch's predictions."""
        predictions = outputs["prediction"].tolist()
        has_labels = isinstance(batch, list | tuple) and len(batch) > 1
        labels = batch[1].tolist() if has_labels else [""] * len(predictions)
        self._rows += zip(pl_module.data_indices, labels, predictions, strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Write the file."""
        name = "predictions.csv" if trainer.world_size == 1 else f"predictions_{trainer.global_rank}.csv"
        path = log_folder(trainer) / name
        with replacing(path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("sample", "label", "prediction"))
            writer.writerows(self._rows)
        self._rows = []
        rank_zero_info(f"Predictions: {path}")
