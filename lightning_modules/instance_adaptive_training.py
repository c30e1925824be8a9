"""Instance Adaptive Adversarial Training: Improved Accuracy Tradeoffs in Neural Nets (Balaji, Goldstein, Hoffman 2019).

| symbol | here | what |
| --- | --- | --- |
| epsilon_i | ``radii`` | radius of each training example, stored from epoch to epoch |
| gamma | ``discretization`` | step to the next larger and the next smaller radius |
| beta | ``smoothing`` | weight of the new radius in the stored one |
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import AttackedClassifier, Batch
from robust.errors import require
from robust.modes import attack_mode
from robust.threat_models import PixelBox


class InstanceAdaptiveTraining(AttackedClassifier):
    """Adversarial training with one radius for each example, as large as the network withstands.

    The data module must have a method ``indices``, as all of this project have. Radii start at epsilon and never exceed
    ``largest_radius``. The threat model is the linf ball. A ramp scales the radii of the training images, not those of
    the selection; end it with the warm-up.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: radius of the warm-up and of evaluation, in pixel units.
        discretization: step to the next larger and the next smaller radius, in pixel units.
        smoothing: weight of the newly selected radius, in (0, 1].
        warmup_epochs: number of epochs of adversarial training at epsilon before radii adapt.
        largest_radius: upper limit of the radii; by default twice epsilon, but at most 1.
        **settings: settings of :class:`AttackedClassifier` except ``norm``.

    Raises:
        SettingError: if a setting is out of its range, or the data module has no ``indices``.
    """

    radii: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        *,
        epsilon: float = 8 / 255,
        discretization: float = 1.9 / 255,
        smoothing: float = 0.1,
        warmup_epochs: int = 5,
        largest_radius: float | None = None,
        **settings: Any,
    ) -> None:
        require(discretization > 0, "model.discretization", discretization, "give a positive step, in pixel units")
        require(0 < smoothing <= 1, "model.smoothing", smoothing, "give a weight in (0, 1]")
        require(warmup_epochs >= 0, "model.warmup_epochs", warmup_epochs, "give 0 or more")
        super().__init__(classifier, epsilon, norm="linf", **settings)
        largest = min(2 * epsilon, 1.0) if largest_radius is None else largest_radius
        require(epsilon <= largest <= 1, "model.largest_radius", largest, f"give a radius from epsilon {epsilon} to 1")
        self.discretization, self.smoothing, self.warmup_epochs = discretization, smoothing, warmup_epochs
        self.largest_radius = largest
        self._count = 0  # number of training images
        self.radii = torch.empty(0)  # not a buffer: EMAWeightAveraging would average the radii

    @property
    def delays(self) -> dict[str, int]:
        """Radii adapt after epochs."""
        return {"warmup_epochs": self.warmup_epochs}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Select radii (Algorithm 2), then train on images attacked at these radii (Algorithm 1)."""
        x, y = batch
        indices = self.data_module.indices("train", batch_idx).to(x.device)
        radii = self.radii[indices]
        if self.current_epoch >= self.warmup_epochs:
            radii = (1 - self.smoothing) * radii + self.smoothing * self._select(x, y, radii)
            self._store(indices, radii)
        x_adv = self.attack(self.classifier, _balls(self.ramp * radii), x, y)
        loss = F.cross_entropy(self(x_adv), y)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log("train/mean_radius", radii.mean(), sync_dist=True)

    def _select(self, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
        """The largest of radius + gamma and radius that the network withstands, else radius - gamma; (B,)."""
        larger = (radii + self.discretization).clamp(max=self.largest_radius)
        smaller = (radii - self.discretization).clamp(min=0)
        return torch.where(
            self._withstands(x, y, larger), larger, torch.where(self._withstands(x, y, radii), radii, smaller)
        )

    def _withstands(self, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
        """Whether each example is correct when attacked at its radius, in the attack's mode; bool (B,)."""
        x_adv = self.attack(self.classifier, _balls(radii), x, y)
        with attack_mode(self.classifier, self.attack.mode):
            correct: Tensor = self(x_adv).argmax(1) == y
        return correct

    def _store(self, indices: Tensor, radii: Tensor) -> None:
        """Store the radii of all processes' images, so that every process has the same radii."""
        self.radii[self.gather(indices)] = self.gather(radii)

    def setup(self, stage: str) -> None:
        """Check the run, and set the radius of every training image to epsilon, unless there are as many radii already.

        Raises:
            SettingError: if the data module has no ``indices``.
        """
        super().setup(stage)
        if stage == "fit":
            data = self.data_module
            knows = hasattr(data, "indices")
            require(knows, "data", type(data).__name__, "it has no method indices; give one of our data modules")
            self._count = len(data.images("train"))
            if len(self.radii) != self._count:
                self.radii = torch.full((self._count,), self.epsilon)

    def on_train_start(self) -> None:
        """Move the radii to the device and precision of the weights.

        Raises:
            SettingError: if a checkpoint has radii for another number of images.
        """
        super().on_train_start()
        remedy = f"the data has {self._count}; resume with the data that the checkpoint was trained on"
        require(len(self.radii) == self._count, "ckpt_path", f"radii of {len(self.radii)} images", remedy)
        self.radii = self.radii.to(next(self.classifier.parameters()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the radii, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["radii"] = self.radii

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the radii, too."""
        super().on_load_checkpoint(checkpoint)
        self.radii = checkpoint["radii"].to(self.device)


def _balls(radii: Tensor) -> PixelBox:
    """The linf ball around each image, radii (B,)."""
    return PixelBox(radii[:, None, None, None])
