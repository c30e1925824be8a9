"""Accuracy on corrupted copies of the test images, such as MNIST-C's, beside the test on the images themselves."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor

from callbacks.evaluation.base import Evaluation
from lightning_modules.base import RobustClassifier
from robust.checks import check_logits
from robust.errors import SettingError, require
from robust.metrics import Accuracy

NAME = "CorruptedAccuracy"


class CorruptedAccuracy(Evaluation):
    """Logs ``test/accuracy/group/<group>`` for each group of copies of the test images, and the mean over groups.

    The mean is ``test/accuracy/group/mean``. The test images' indices select the copies, so that a test of some images,
    on any number of processes, evaluates the copies of these images. :class:`GroupAccuracy` logs the same metrics for
    a test on all copies.

    Args:
        data: data module of the copies. Its attribute ``groups`` maps names to numbers of images, in the order of its
            test images; each group has copies of all test images, in their order.
        **settings: settings of :class:`Evaluation`; ``seed`` seeds the noise of noisy networks.

    Raises:
        SettingError: if ``data`` has no groups, its files cannot be read, or its images are not copies of the test
            images.
    """

    stages = ("test",)
    needs_float32 = False

    def __init__(self, data: LightningDataModule, **settings: Any) -> None:
        super().__init__(**settings)
        groups = getattr(data, "groups", None)
        require(bool(groups), f"{NAME}.data", type(data).__name__, "give data in groups, such as MNISTC")
        self.data: Any = data
        self.groups: dict[str, int] = groups or {}

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Read the copies, after a download if ``data`` asks for it, and compare their labels with the test images'."""
        try:
            self._prepare(module.trainer)
            copies = self.data.images("test")
        except SettingError as error:
            reason = str(error).partition("; ")[2].partition("; ")[0]
            remedy = f"{reason}; set data.download: true, give their folder as data.root or ROBUST_DATA, or leave out "
            remedy += NAME
            raise SettingError(f"{NAME}.data", type(self.data).__name__, remedy) from error
        tested = module.data_module
        labels = tested.images("test").labels if hasattr(tested, "images") else None
        copied = labels is not None and all(
            torch.equal(each, labels) for each in torch.split(copies.labels, list(self.groups.values()))
        )
        copied = copied and copies[torch.zeros(1, dtype=torch.long)].images.shape == x.shape
        remedy = f"its images are not copies of the test images of {type(tested).__name__}; leave out {NAME}"
        require(copied, f"{NAME}.data", type(self.data).__name__, remedy)

    def _prepare(self, trainer: Trainer) -> None:
        """Prepare the data in one process of each machine, as Lightning does for the test data; the others wait."""
        try:
            if trainer.local_rank == 0:
                self.data.prepare_data()
        finally:
            trainer.strategy.barrier(NAME)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        copies, first = self.data.images("test"), 0
        for number, (name, count) in enumerate(self.groups.items()):
            images, _ = copies[first + self.indices.cpu()]
            with self.seeded(x, number):
                logits = module(images.to(x))
                check_logits(logits, len(x))
                self.update(f"accuracy/group/{name}", Accuracy, logits.argmax(1) == y)
            first += count

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The accuracy of each group, and their mean."""
        values = super().compute(module)
        return values | {"accuracy/group/mean": torch.stack(list(values.values())).mean()}
