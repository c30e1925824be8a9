"""Accuracy on each part of test data that come in several, such as the corruptions of MNIST-C."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._attacking import check_evaluation
from callbacks._places import Places
from lightning_modules.base import RobustClassifier
from robust.errors import require
from robust.metrics import Gathered


class GroupAccuracy(Callback):
    """``test/accuracy/<group>`` for every group of the test data, and ``test/accuracy/mean``, each group counted alike.

    The data module names its groups: ``groups``, from name to number of images, in the order of the test data.

    Raises:
        SettingError: in a test of data without groups, or of a part of them.
    """

    def __init__(self) -> None:
        self._places = Places()
        self._table = Gathered(["right"])

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the data, and forget what a test that was stopped had counted."""
        data: Any = getattr(trainer, "datamodule", None)
        remedy = "GroupAccuracy needs data in groups: give MNISTC, or leave it out"
        require(bool(getattr(data, "groups", None)), "data", type(data).__name__, remedy)
        limit = trainer.limit_test_batches
        require(limit == 1.0, "trainer.limit_test_batches", limit, "leave it out: the mean is over all groups")
        check_evaluation(self, trainer, pl_module)
        self._places = Places()
        self._table = Gathered(["right"]).to(pl_module.device)

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Judge a batch."""
        x, y = batch
        self._table.update(self._places.advance(trainer, x), pl_module(x).argmax(1) == y)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Log the accuracies."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        right: Tensor = self._table.rows()["right"].double()
        require(len(right) == sum(data.groups.values()), "test images", len(right), "evaluate each exactly once")
        log = partial(pl_module.log, sync_dist=True)  # averages what is equal in all processes already
        means = [part.mean() for part in torch.split(right, list(data.groups.values()))]
        for name, mean in zip(data.groups, means, strict=True):
            log(f"test/accuracy/{name}", mean)
        log("test/accuracy/mean", torch.stack(means).mean())
