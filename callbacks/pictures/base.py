"""The base of all pictures: figures of the first images, written to TensorBoard and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks._stages import Stage, StageCallback
from lightning_modules.base import RobustClassifier
from robust.errors import require


class Picture(StageCallback, ABC):
    """Figures of the first images of the validation and the test data; subclasses implement :meth:`draw`.

    A figure is written to TensorBoard (``<stage>/<tag>/<name>``) and to ``<folder_name>/<stage>_<name>.png`` in the log
    folder, with the epoch in the file's name if it is drawn in training.

    Args:
        count: number of images.
        every_n_epochs: draw in validation at this interval, in epochs, and at the end of the training; by default
            only in tests and in ``train.py validate``.

    Attributes:
        tag: prefix of the figures' names in TensorBoard.
        folder_name: name of the files' folder.

    Raises:
        SettingError: if a setting is below 1.
    """

    tag: ClassVar[str]
    folder_name: ClassVar[str]

    def __init__(self, count: int, every_n_epochs: int | None = None) -> None:
        super().__init__(every_n_epochs, max_batches=1, max_test_batches=1)
        require(count >= 1, f"{type(self).__name__}.count", count, "give at least 1")
        self.count = count

    @abstractmethod
    def draw(self, module: RobustClassifier, x: Tensor, y: Tensor) -> dict[str, Figure]:
        """Figures of images (B, C, H, W) and their labels (B,), by name; a single figure has an empty name."""

    def on_batch(self, stage: Stage, trainer: Trainer, module: RobustClassifier, batch: Any, batch_idx: int) -> None:
        """Draw the first batch in the first process."""
        if not trainer.is_global_zero:
            return
        with torch.inference_mode(False), torch.no_grad():
            x, y = (part[: self.count].clone() for part in batch)
            figures = self.draw(module, x, y)
        many_epochs = stage == "val" and self.every_n_epochs is not None
        epoch = f"epoch{trainer.current_epoch + 1:03d}" if many_epochs else ""
        for name, figure in figures.items():
            file = "_".join(filter(None, (stage, name, epoch)))
            path = self.folder / self.folder_name / f"{file}.png"
            write_figure(trainer, "/".join(filter(None, (stage, self.tag, name))), figure, path)
            if trainer.state.fn != "fit":
                rank_zero_info(f"Picture: {path}")


def class_name(module: RobustClassifier, label: int) -> str:
    """The name of a class, ``class 3`` if the data does not name its classes."""
    names = getattr(module.data_module, "class_names", None)
    return f"class {label}" if names is None else str(names[label])


def write_figure(trainer: Trainer, name: str, figure: Figure, path: Path, dpi: int = 100) -> None:
    """Write a figure to TensorBoard, under ``name``, and to a file; it is drawn once."""
    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    step = trainer.fit_loop.epoch_loop._batches_that_stepped  # the step that self.log uses
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, pixels)


def visible(images: Tensor) -> Tensor:
    """Images (..., C, H, W) as grey or coloured ones: the mean over channels unless there are one or three.

    >>> visible(torch.rand(5, 4, 2, 2)).shape, visible(torch.rand(3, 2, 2)).shape
    (torch.Size([5, 1, 2, 2]), torch.Size([3, 2, 2]))
    """
    return images if images.shape[-3] in (1, 3) else images.mean(-3, keepdim=True)


def named_channels(name: str, images: Tensor) -> str:
    """The name of a row of pictures, with what :func:`visible` does to images (..., C, H, W)."""
    channels = images.shape[-3]
    return name if channels in (1, 3) else f"{name}\n(mean of {channels} channels)"
