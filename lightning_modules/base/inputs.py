"""Checks of a run's inputs: the shape of the data, the settings of the trainer, every batch."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor, nn

from lightning_modules.base.blank_runs import check_registered, run_blank
from lightning_modules.base.checks import check_images, check_precision, check_scales, images_of, labelled
from robust.errors import require


def data_module(trainer: Any) -> Any:
    """The data module of the current run, or of the last run; None for plain loaders or without a trainer.

    ``trainer.datamodule`` may be the data module of an earlier run.
    """
    data = getattr(trainer, "datamodule", None)
    if data is None:
        return None
    loop = getattr(trainer, f"{trainer.state.fn.value}_loop")
    return data if loop._data_source.instance is data else None


def _number_of_loaders(trainer: Any) -> int:
    """Number of the loaders of the evaluation, or of the training's validation."""
    function = trainer.state.fn
    loop = trainer.fit_loop.epoch_loop.val_loop if function == "fit" else getattr(trainer, f"{function.value}_loop")
    given = loop._data_source.instance
    loaders = given.flattened if isinstance(given, CombinedLoader) else given
    return len(loaders) if isinstance(loaders, list | tuple | dict) else 1


def end_averages_last(trainer: Any) -> None:
    """Order the callbacks: averages of weights behind the others, checkpoints last, as Lightning has them.

    Where a validation ends, an average gives the module its weights in training again, with which evaluations that end
    later would contradict their batches.
    """
    kinds = (ModelCheckpoint, WeightAveraging)
    trainer.callbacks.sort(key=lambda callback: [isinstance(callback, kind) for kind in kinds])


class CheckedInputs(pl.LightningModule):
    """Checks that networks, data and trainer fit together before the run starts, then checks every batch.

    Attributes:
        half_precision: whether the method supports weights in half precision (``bf16-true`` and ``16-true``).
        training_batches: number of independently shuffled batches in a training step; above 1, ``training_step``
            gets a list of them.
    """

    half_precision: bool = False
    training_batches: int = 1
    gradient_clip: float | None

    @property
    def data_module(self) -> Any:
        """The data module of the current run, or of the last run; None for plain loaders."""
        return data_module(self._trainer)

    def check_data(self) -> None:
        """Check the networks on the data module's image shape, if it has one."""
        data = self.data_module
        if data is not None and hasattr(data, "image_shape"):
            self.check_shapes(data.image_shape, data.num_classes)

    def check_loaders(self) -> None:
        """Check that there is one loader of images to evaluate.

        Raises:
            SettingError: if there are several.
        """
        count = 1 if self.trainer.state.fn is None else _number_of_loaders(self.trainer)
        remedy = "metrics are of one set of images; give one, such as of a ConcatDataset, or evaluate each by itself"
        require(count <= 1, "data", f"{count} loaders", remedy)

    @property
    def steps_together(self) -> bool:
        """Whether several optimizers step after one backward pass."""
        return False

    def check_trainer(self, stage: str) -> None:
        """Check that the trainer's callbacks and precision suit the method.

        Raises:
            SettingError: if a callback or the precision does not.
        """
        callbacks = getattr(self.trainer, "callbacks", [])
        averaging = any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks)
        remedy = "it continues the training for an epoch; give pytorch_lightning.callbacks.EMAWeightAveraging"
        require(not averaging, "trainer.callbacks", "StochasticWeightAveraging", remedy)
        if stage == "fit" and not self.half_precision:
            check_precision(self, self.trainer, type(self).__name__)
        check_scales(self, together=stage == "fit" and self.steps_together)
        require(
            self.gradient_clip is None or self.trainer.precision != "16-mixed",
            "trainer.precision",
            "16-mixed",
            "its scaled gradients cannot be clipped in manual optimization; give bf16-mixed or 32-true",
        )

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Run the networks once on a blank image of the data's shape; subclasses implement the check.

        Raises:
            SettingError: if a network fails on the image or returns a wrong shape.
        """

    def check_generator(self, name: str, generator: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """Check that a generator returns images of the data's shape.

        Raises:
            SettingError: if it fails, or returns another shape.
        """
        output = run_blank(f"model.{name}", generator, image_shape)
        check_registered(f"model.{name}", generator, image_shape)
        require(
            tuple(output.shape[1:]) == tuple(image_shape),
            f"model.{name}",
            f"{type(generator).__name__} with output {tuple(output.shape[1:])}",
            f"give a network with output {image_shape}, the shape of the data's images",
        )

    def check_batch(self, x: Tensor, y: Tensor | None, name: str) -> None:
        """Check the images of a batch; subclasses also check its labels.

        Args:
            x: images.
            y: labels; None in prediction.
            name: name of the batch in errors.

        Raises:
            SettingError: if the batch is wrong.
        """
        check_images(x, f"images of {name}")

    def check_labelled(self, batch: Any, name: str, count: int = 1) -> None:
        """Check the images and labels of a batch, or of a list of ``count`` batches."""
        for x, y in labelled(batch, name, count):
            self.check_batch(x, y, name)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check the batch."""
        self.check_labelled(batch, f"validation batch {batch_idx}")

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check the batch."""
        self.check_labelled(batch, f"test batch {batch_idx}")

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check the images; they need no labels."""
        name = f"predict batch {batch_idx}"
        self.check_batch(images_of(batch, name), None, name)
