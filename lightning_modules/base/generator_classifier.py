"""What the methods share that train a generator beside the classifier."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_modules.base.descent import Trained
from lightning_modules.base.robust_classifier import RobustClassifier


class GeneratorClassifier(RobustClassifier):
    """A classifier and a generator, each with an optimizer and a schedule of its own.

    Args:
        generator: network from images (B, C, H, W) to outputs of the same shape; None for methods that do without.
        generator_optimizer: the generator's.
        generator_lr_scheduler: its learning-rate schedule, stepped once an epoch.
        **settings: those of the next class in line, :class:`RobustClassifier` or a base made from it.
    """

    def __init__(
        self,
        *,
        generator: nn.Module | None,
        generator_optimizer: OptimizerCallable,
        generator_lr_scheduler: LRSchedulerCallable | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.generator = generator
        self.generator_optimizer, self.generator_lr_scheduler = generator_optimizer, generator_lr_scheduler

    def trained(self) -> list[Trained]:
        """The classifier first, then the generator, if any."""
        if self.generator is None:
            return super().trained()
        generator = Trained(self.generator.parameters(), self.generator_optimizer, self.generator_lr_scheduler)
        return [*super().trained(), generator]

    @property
    def partially_used(self) -> list[str]:
        """The generator, which some steps of the classifier leave out."""
        return [] if self.generator is None else ["generator"]

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Check the classifier, then that the generator gives outputs of the images' shape."""
        super().check_shapes(image_shape, num_classes)
        if self.generator is not None:
            self.check_generator("generator", self.generator, image_shape)
