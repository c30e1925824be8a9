"""What the methods that train on the data manifold share: a frozen autoencoder beside the classifier."""

from __future__ import annotations

from typing import Self

from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_modules.base.robust_classifier import RobustClassifier
from robust.errors import require
from robust.networks import Autoencoder, load_autoencoder


class ManifoldClassifier(RobustClassifier):
    """A classifier that learns from what a trained autoencoder decodes; the autoencoder itself never moves.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        autoencoder: of the form that ``WassersteinAutoencoder`` has trained.
        autoencoder_checkpoint: of that training; read where a training begins, for a checkpoint of this module holds
            the autoencoder too.
        epsilon: size of the threat model in which it is evaluated, in pixel units; training does not use it.
        optimizer: the classifier's.
        lr_scheduler: its learning-rate schedule, stepped once an epoch.
        gradient_clip: largest norm of the gradient.

    Raises:
        SettingError: if a setting is out of its range, or networks, checkpoint and data do not fit together.
    """

    def __init__(
        self,
        classifier: nn.Module,
        autoencoder: Autoencoder,
        autoencoder_checkpoint: str | None,
        epsilon: float,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        gradient_clip: float | None,
    ) -> None:
        super().__init__(classifier, epsilon, gradient_clip)
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.autoencoder_checkpoint = autoencoder_checkpoint
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def train(self, mode: bool = True) -> Self:
        """Set the classifier's mode; the autoencoder stays in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def configure_optimizers(self):  # type: ignore[no-untyped-def]  # noqa: ANN201, D102 - Lightning's type is a maze
        optimizer = self.optimizer(self.classifier.parameters())
        return [optimizer], [] if self.lr_scheduler is None else [self.lr_scheduler(optimizer)]

    def setup(self, stage: str) -> None:
        """Read the autoencoder where a training begins; see :meth:`TrainingModule.setup`."""
        super().setup(stage)
        if stage == "fit" and self.trainer.ckpt_path is None:
            path, setting = self.autoencoder_checkpoint, "model.autoencoder_checkpoint"
            require(path is not None, setting, path, "train a WassersteinAutoencoder first and give its checkpoint")
            load_autoencoder(self.autoencoder, str(path), setting)

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Check the classifier, and that the autoencoder gives images."""
        super().check_shapes(image_shape, num_classes)
        self.check_generator("autoencoder", self.autoencoder, image_shape)
