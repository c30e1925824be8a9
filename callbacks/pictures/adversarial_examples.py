"""Pictures of images beside their adversarial examples."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from callbacks._stages import Stage
from callbacks.pictures.base import Picture
from lightning_modules.base import RobustClassifier
from robust.attacks import PGD
from robust.errors import GradientError, NonFiniteLogitsError, SettingError
from robust.modes import attack_mode
from robust.random import global_seed


class AdversarialExamples(Picture):
    """Draws the first images, the images that PGD makes of them in the module's first threat model, and the difference.

    Titles give the predicted classes, in red if they are wrong. Written to TensorBoard
    (``<stage>/adversarial_examples/<threat model>``) and to ``adversarial_examples/`` in the log folder, in tests and
    after the last epoch of a training. Without TensorBoard it does nothing.

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

    def is_due(self, stage: Stage, trainer: Trainer, batch_idx: int) -> bool:
        """Whether to draw this batch: with TensorBoard, and after the last epoch too."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        first = next(each for each in callbacks if isinstance(each, AdversarialExamples))
        shown = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
        if batch_idx > 0 or not shown or first is not self:  # the command line's own comes after the user's
            return False
        last = trainer.current_epoch + 1 == trainer.max_epochs and not trainer.sanity_checking
        return last or super().is_due(stage, trainer, batch_idx)

    def on_batch(self, stage: Stage, trainer: Trainer, module: RobustClassifier, batch: Any, batch_idx: int) -> None:
        """Draw the first batch of a classifier."""
        if isinstance(module, RobustClassifier):
            super().on_batch(stage, trainer, module, batch, batch_idx)

    def draw(self, module: RobustClassifier, x: Tensor, y: Tensor) -> dict[str, Figure]:
        """Draw one figure; none if the attack refuses the network, since a picture must not end a run."""
        try:
            with attack_mode(module, "eval"), global_seed(x.device, self.seed):
                name, threat_model = next(iter(module.threat_models(x, module.epsilon).items()))
                x_adv = self.attack(module, threat_model, x, y)
                predictions = [module(images).argmax(1) for images in (x, x_adv)]
        except (GradientError, NonFiniteLogitsError, SettingError):
            return {}
        return {name: draw_examples(x, x_adv, predictions[0], predictions[1], y)}


def draw_examples(x: Tensor, x_adv: Tensor, before: Tensor, after: Tensor, y: Tensor) -> Figure:
    """Draw a column for each image: the image, the attacked image and their difference.

    The difference is divided by twice its largest size and added to grey.

    Args:
        x: images (B, C, H, W) in [0, 1].
        x_adv: attacked images, of the same shape.
        before: predicted classes of the images, (B,).
        after: predicted classes of the attacked images, (B,).
        y: labels (B,).
    """
    difference = x_adv - x
    largest = float(difference.abs().max())
    shown = 0.5 + difference / (2 * max(largest, 1e-12))
    figure = Figure(figsize=(1.1 * len(x) + 0.4, 4.2), layout="constrained")
    axes = figure.subplots(3, len(x), squeeze=False)
    for row, images in enumerate((x, x_adv, shown)):
        for column, image in enumerate(images):
            axes[row, column].imshow(image.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
            axes[row, column].set(xticks=[], yticks=[])
    for row, classes in enumerate((before, after)):
        for column, (predicted, label) in enumerate(zip(classes.tolist(), y.tolist(), strict=True)):
            colour = "black" if predicted == label else "firebrick"
            axes[row, column].set_title(f"class {predicted}", fontsize=9, color=colour)
    for row, name in enumerate(("image", "attacked", f"difference\n(largest {largest:.3g})")):
        axes[row, 0].set_ylabel(name, fontsize=9)
    return figure
