"""The settings of a test that follows a training, checked before the training."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks._stages import StageCallback
from callbacks.evaluation.resumable import ResumableTest
from robust.errors import require


class TestAfterFit(Callback):
    """Checks the test that follows a training before its first step: the test images, and each evaluation's settings.

    The command line adds it if ``test_after_fit`` is set. Data modules of other classes, which may read the test images
    later, are left to the test.

    Raises:
        SettingError: if the test would refuse its images, its number of batches, or an evaluation's settings.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the test's loader as the test will, and ask each callback."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "image_shape"):
            return
        loader = data.test_dataloader()
        limit, batches = trainer.limit_test_batches, len(loader)
        remedy = f"the test has {batches} batches, and this is none of them; give a larger fraction, or a whole number"
        require(isinstance(limit, int) or int(batches * limit) >= 1, "trainer.limit_test_batches", limit, remedy)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StageCallback | ResumableTest):
                callback.check_test(trainer, pl_module, loader)
