"""Pictures of images beside their adversarial examples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from callbacks._stages import Stage, in_last_epoch
from callbacks.pictures.base import Picture, class_name, named_channels, visible
from lightning_modules.base import RobustClassifier
from robust.attacks import PGD
from robust.errors import GradientError, NonFiniteLogitsError, SettingError
from robust.modes import attack_mode
from robust.random import global_seed

GAP = 2  # pixels between images


class AdversarialExamples(Picture):
    """Draws the first images, their adversarial examples by PGD in the module's first threat model, and the difference.

    Titles give the predicted classes, in red if they are wrong. The figure is written to TensorBoard
    (``<stage>/adversarial_examples/<threat model>``) and to ``adversarial_examples/`` in the log folder, in tests and
    after the last epoch of a training. Without TensorBoard the callback does nothing.

    Args:
        count: number of images.
        every_n_epochs: also draw in validation at this interval, in epochs of training.
        steps: steps of PGD.
        seed: seed of PGD.

    Raises:
        SettingError: if a setting is below 1.
    """

    tag = "adversarial_examples"
    folder_name = "adversarial_examples"

    def __init__(self, count: int = 8, every_n_epochs: int | None = None, steps: int = 10, seed: int = 0) -> None:
        super().__init__(count, every_n_epochs)
        self.attack = PGD(steps)
        self.seed = seed
        self._warned = False

    def is_due(self, stage: Stage, trainer: Trainer, batch_idx: int) -> bool:
        """Whether to draw this batch: only with TensorBoard, and also after the last epoch."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        first = next(callback for callback in callbacks if isinstance(callback, AdversarialExamples))
        shown = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
        if batch_idx > 0 or not shown or first is not self:  # the command line's default comes after the user's
            return False
        last = not trainer.sanity_checking and in_last_epoch(trainer)
        return last or super().is_due(stage, trainer, batch_idx)

    def on_batch(self, stage: Stage, trainer: Trainer, module: RobustClassifier, batch: Any, batch_idx: int) -> None:
        """Draw the first batch of a classifier."""
        if isinstance(module, RobustClassifier):
            super().on_batch(stage, trainer, module, batch, batch_idx)

    def draw(self, module: RobustClassifier, x: Tensor, y: Tensor) -> dict[str, Figure]:
        """Draw one figure, or warn once and draw none if the attack refuses the network.

        A picture must not end a run.
        """
        try:
            with attack_mode(module, "eval"), global_seed(x.device, self.seed):
                name, threat_model = next(iter(module.threat_models(x, module.epsilon).items()))
                x_adv = self.attack(module, threat_model, x, y)
                predictions = [module(images).argmax(1) for images in (x, x_adv)]
        except (GradientError, NonFiniteLogitsError, SettingError) as error:
            if not self._warned:
                rank_zero_warn(f"{type(self).__name__} draws nothing: {error}")
            self._warned = True
            return {}
        return {name: draw_examples(x, x_adv, predictions[0], predictions[1], y, partial(class_name, module))}


def draw_examples(
    x: Tensor,
    x_adv: Tensor,
    before: Tensor,
    after: Tensor,
    y: Tensor,
    name_of: Callable[[int], str] = "class {}".format,
) -> Figure:
    """Draw a column for each image: the image, the attacked image and their difference.

    The difference is divided by twice its largest size and added to grey. Of images that have neither one nor three
    channels, the mean over channels is drawn.

    Args:
        x: images (B, C, H, W) in [0, 1].
        x_adv: attacked images, of the same shape.
        before: predicted classes of the images, (B,).
        after: predicted classes of the attacked images, (B,).
        y: labels (B,).
        name_of: function that gives the name of a class.
    """
    difference = x_adv - x
    largest = float(difference.abs().max())
    shown = 0.5 + difference / (2 * max(largest, 1e-12))
    width = x.shape[3] + GAP
    names = (named_channels("image", x), "attacked", f"difference\n(largest {largest:.3g})")
    figure = Figure(figsize=(1.1 * len(x) + 0.6, 4.2))
    axes = figure.subplots(3, 1, gridspec_kw={"left": 0.07, "right": 0.99, "top": 0.94, "bottom": 0.01, "hspace": 0.2})
    for axis, images, name in zip(axes, (x, x_adv, shown), names, strict=True):
        axis.imshow(_side_by_side(images), vmin=0, vmax=1)
        axis.set_axis_off()
        axis.text(-GAP, x.shape[2] / 2, name, fontsize=9, rotation=90, ha="right", va="center")
    for axis, classes in zip(axes, (before, after), strict=False):
        for column, (predicted, label) in enumerate(zip(classes.tolist(), y.tolist(), strict=True)):
            colour = "black" if predicted == label else "firebrick"
            middle = column * width + x.shape[3] / 2
            axis.text(middle, -GAP, name_of(predicted), fontsize=9, color=colour, ha="center", va="bottom")
    return figure


def _side_by_side(images: Tensor) -> Any:
    """Images (B, C, H, W) as one array (H, B * (W + GAP), 3) with white gaps; ten times as fast as an axis for each."""
    colour = visible(images).clamp(0, 1).cpu()
    colour = colour.expand(-1, 3, -1, -1) if colour.shape[1] == 1 else colour
    return torch.nn.functional.pad(colour, (0, GAP), value=1.0).permute(2, 0, 3, 1).flatten(1, 2).numpy()
