"""Accuracy on each group of the test data, such as the corruptions of MNIST-C."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from callbacks.evaluation.base import Evaluation
from lightning_modules.base import RobustClassifier
from robust.errors import require
from robust.metrics import Gathered


class GroupAccuracy(Evaluation):
    """Logs ``test/accuracy/group/<group>`` for each group of the test data, and the mean over groups.

    The mean is ``test/accuracy/group/mean``. The data module's attribute ``groups`` maps the groups' names to numbers
    of images, in the order of the test data.

    Raises:
        SettingError: if the data has no groups, or the test is limited to a part of the images.
    """

    stages = ("test",)
    needs_float32 = False

    def __init__(self) -> None:
        super().__init__()

    def check_test(self, trainer: Trainer, module: RobustClassifier, loader: Any) -> None:
        """Check that the data has groups, and that the test is of all images."""
        data = module.data_module
        remedy = "GroupAccuracy needs data in groups: give MNISTC, or leave it out"
        require(bool(getattr(data, "groups", None)), "data", type(data).__name__, remedy)
        limit = trainer.limit_test_batches
        whole = isinstance(limit, float) and limit == 1  # the whole number 1 is one batch
        require(whole, "trainer.limit_test_batches", limit, "leave it out: the mean is over all groups")

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        self.update("correct", partial(Gathered, ["correct"]), self.indices, module(x).argmax(1) == y)

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The accuracy of each group, and their mean."""
        data = module.data_module
        correct = self.rows("correct")["correct"].double()
        remedy = f"the groups have {sum(data.groups.values())} images; evaluate each exactly once"
        require(len(correct) == sum(data.groups.values()), "test images", len(correct), remedy)
        means = [part.mean() for part in torch.split(correct, list(data.groups.values()))]
        values = {f"accuracy/group/{name}": mean for name, mean in zip(data.groups, means, strict=True)}
        return values | {"accuracy/group/mean": torch.stack(means).mean()}
