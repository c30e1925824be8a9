"""Base of the methods that train on the data manifold: a classifier and a frozen autoencoder."""

from __future__ import annotations

from typing import Any, Self

from pytorch_lightning.cli import OptimizerCallable
from torch import nn
from torch.optim import Adam

from lightning_modules.base.robust_classifier import RobustClassifier
from robust.errors import require
from robust.networks import Autoencoder, load_autoencoder


class ManifoldClassifier(RobustClassifier):
    """A classifier that learns from the images that a frozen autoencoder decodes.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        autoencoder: autoencoder of the architecture that ``WassersteinAutoencoder`` trained.
        autoencoder_checkpoint: checkpoint of that training. It is read only at the start of a training, since this
            module's own checkpoints contain the autoencoder.
        epsilon: size of the threat model in evaluation, in pixel units; training does not use it.
        optimizer: optimizer of the classifier.
        **settings: settings of :class:`RobustClassifier`.

    Raises:
        SettingError: if a setting is out of its range, or networks, checkpoint and data do not fit together.
    """

    def __init__(
        self,
        classifier: nn.Module,
        autoencoder: Autoencoder,
        *,
        autoencoder_checkpoint: str | None = None,
        epsilon: float = 0.1,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        **settings: Any,
    ) -> None:
        super().__init__(classifier, epsilon, optimizer=optimizer, **settings)
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.autoencoder_checkpoint = autoencoder_checkpoint

    def train(self, mode: bool = True) -> Self:
        """Set the classifier's mode; the autoencoder stays in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def setup(self, stage: str) -> None:
        """Check the run, and load the autoencoder at the start of a training."""
        super().setup(stage)
        if stage == "fit" and self.trainer.ckpt_path is None:
            path, setting = self.autoencoder_checkpoint, "model.autoencoder_checkpoint"
            require(path is not None, setting, path, "train a WassersteinAutoencoder first and give its checkpoint")
            load_autoencoder(self.autoencoder, str(path), setting)

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Check the classifier, and that the autoencoder returns images of the data's shape."""
        super().check_shapes(image_shape, num_classes)
        self.check_generator("autoencoder", self.autoencoder, image_shape)
