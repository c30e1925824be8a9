"""Base of the methods that train a generator and a classifier."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_modules.base.descent import OptimizerSpec
from lightning_modules.base.robust_classifier import RobustClassifier
from robust.errors import require


class GeneratorClassifier(RobustClassifier):
    """A classifier and a generator, each with its own optimizer and schedule.

    Args:
        generator: network from images (B, C, H, W) to outputs of the same shape; None to train the classifier alone.
        generator_optimizer: optimizer of the generator.
        generator_lr_scheduler: learning-rate schedule of the generator, stepped once an epoch.
        **settings: settings of :class:`RobustClassifier`, or of the base that follows in the method resolution order.
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

    def optimizer_specs(self) -> list[OptimizerSpec]:
        """The classifier's entry, then the generator's, if there is a generator."""
        if self.generator is None:
            return super().optimizer_specs()
        spec = OptimizerSpec(self.generator.parameters(), self.generator_optimizer, self.generator_lr_scheduler)
        return [*super().optimizer_specs(), spec]

    def require_trainable(self) -> None:
        """Check that the classifier and the generator have weights to train, for methods that differentiate to both.

        Raises:
            SettingError: if all weights of one are frozen.
        """
        for name, network in (("classifier", self.classifier), ("generator", self.generator)):
            frozen = network is not None and not any(weight.requires_grad for weight in network.parameters())
            remedy = f"all its weights are frozen, and {type(self).__name__} trains them; leave some to train"
            require(not frozen, f"model.{name}", type(network).__name__, remedy)

    @property
    def partially_used(self) -> list[str]:
        """The generator, which some steps of the classifier do not use."""
        return [] if self.generator is None else ["generator"]

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Check the classifier, then that the generator gives outputs of the images' shape."""
        super().check_shapes(image_shape, num_classes)
        if self.generator is not None:
            self.check_generator("generator", self.generator, image_shape)
