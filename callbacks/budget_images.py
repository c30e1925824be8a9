"""Pictures of images and the budgets that a method has learned for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks._folders import log_folder
from lightning_modules.base import RobustClassifier
from robust.errors import require


def draw_budgets(images: Tensor, budgets: Tensor, title: str = "", white: float | None = None) -> Figure:
    """A grid with the images above and their budgets below, one colour scale with its bar for all.

    Args:
        images: (N, C, H, W) in [0, 1].
        budgets: (N, C, H, W) in [0, 1]; the mean over channels is drawn.
        title: above the grid.
        white: with it, a row more as the paper has it: the budgets over this one as an image, each channel's own.
    """
    count, means, rows = len(images), budgets.mean(1), 2 if white is None else 3
    wider = math.sqrt(images.shape[3] / images.shape[2])  # a picture's area is the same whatever its sides are
    figure = Figure(figsize=(1.1 * wider * count + 1.2, 0.6 + 1.1 / wider * rows), layout="constrained")
    axes = figure.subplots(rows, count, squeeze=False)
    low, high = float(means.min()), float(means.max())
    for column in range(count):
        _show(axes[0, column], images[column])
        drawn = axes[1, column].imshow(means[column].cpu().numpy(), cmap="viridis", vmin=low, vmax=high)
        if white is not None:
            _show(axes[2, column], (budgets[column] / white).clamp(max=1.0))
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].set_ylabel("image")
    axes[1, 0].set_ylabel("budget")
    if white is not None:
        axes[2, 0].set_ylabel(f"/ {white:.3g}")
    figure.colorbar(drawn, ax=axes[1, :], label="epsilon")
    figure.suptitle(title, fontsize=10)
    return figure


def _show(axis: Axes, image: Tensor) -> None:
    """Draw an image (C, H, W) in [0, 1], grey or in colour."""
    axis.imshow(image.permute(1, 2, 0).cpu().numpy(), cmap="gray", vmin=0, vmax=1)


class BudgetImages(Callback):
    """Draws the first images of the validation and test data with their learned budgets.

    Written to TensorBoard (``<stage>/budgets/<threat model>``) and to ``budgets/`` in the log folder. Threat models
    without per-pixel budgets have no picture.

    Args:
        count: number of images.
        every_n_epochs: draw in validation after every so many epochs.
        white: also draw the budgets as the paper does, as images in which this budget is white, in pixel units: 1 in
            figure 2.
        white_over_epsilon: the same, in units of the module's epsilon: in figures 3 and 5 alpha_high, so that the
            largest possible budget is white.

    Raises:
        SettingError: if a number is below 1, or a white is not positive, or both are given.
    """

    def __init__(
        self,
        count: int = 8,
        every_n_epochs: int = 1,
        white: float | None = None,
        white_over_epsilon: float | None = None,
    ) -> None:
        require(count >= 1, "BudgetImages.count", count, "give at least 1")
        require(every_n_epochs >= 1, "BudgetImages.every_n_epochs", every_n_epochs, "give at least 1")
        self.count = count
        for name, size in (("white", white), ("white_over_epsilon", white_over_epsilon)):
            require(size is None or size > 0, f"BudgetImages.{name}", size, "give a positive size")
        both = white is not None and white_over_epsilon is not None
        require(not both, "BudgetImages.white_over_epsilon", white_over_epsilon, "leave out one of the two whites")
        self.white, self.white_over_epsilon = white, white_over_epsilon
        self.every_n_epochs = every_n_epochs
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the log folder, which must be asked in all processes."""
        self._folder = log_folder(trainer)

    @torch.no_grad()
    def _draw(self, stage: str, trainer: Trainer, module: RobustClassifier, x: Tensor, file: str) -> None:
        x = x[: self.count]
        for name, threat_model in module.threat_models(x, module.epsilon).items():
            if threat_model.per_pixel is None:
                continue
            title = f"{name} budgets, volume of epsilon {module.epsilon:g}"
            white = self.white if self.white_over_epsilon is None else self.white_over_epsilon * module.epsilon
            figure = draw_budgets(x, threat_model.per_pixel, title, white)
            step = trainer.fit_loop.epoch_loop._batches_that_stepped  # what self.log counts by
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"{stage}/budgets/{name}", figure, step)
            path = self._folder / "budgets" / f"{stage}_{name}{file}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=100)
            if stage == "test":
                rank_zero_info(f"Picture of the budgets: {path}")

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Draw the first validation batch."""
        epoch = trainer.current_epoch + 1
        due = trainer.state.fn == "validate" or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs
        if batch_idx == 0 and trainer.is_global_zero and due and not trainer.sanity_checking:
            self._draw("val", trainer, pl_module, batch[0], f"_epoch{epoch:03d}")

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Draw the first test batch."""
        if batch_idx == 0 and trainer.is_global_zero:
            self._draw("test", trainer, pl_module, batch[0], "")
