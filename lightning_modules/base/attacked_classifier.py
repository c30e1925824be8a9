"""Base of the methods that train on attacked images: one network, a norm ball, an attack."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base.blank_runs import check_attack
from lightning_modules.base.robust_classifier import RobustClassifier
from robust.attacks import PGD
from robust.metric_names.registry import threat_model_name
from robust.threat_models import Norm, ThreatModel, ball


class AttackedClassifier(RobustClassifier):
    """Base of adversarial training and its variants; subclasses write ``training_step``.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: radius of the threat model, in pixel units.
        norm: norm of the ball.
        attack: attack that makes the training images; by default ten steps of PGD from a random start.
        **settings: settings of :class:`RobustClassifier`.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        epsilon: float = 8 / 255,
        norm: Norm = "linf",
        *,
        attack: PGD | None = None,
        **settings: Any,
    ) -> None:
        self.largest_epsilon = 1.0 if norm == "linf" else float("inf")  # useful radii in l2 and l1 can exceed 1
        super().__init__(classifier, epsilon, **settings)
        ball(norm, epsilon)  # raises if there is no such norm
        self.norm: Norm = norm
        self.attack = PGD(steps=10) if attack is None else attack

    def threat_model(self, epsilon: float) -> ThreatModel:
        """The ball of radius ``epsilon`` in the module's norm."""
        return ball(self.norm, epsilon)

    def threat_models(self, x: Tensor, epsilon: float) -> dict[str, ThreatModel]:
        """The ball of radius ``epsilon``, by its name in metrics."""
        return {threat_model_name(self.norm, epsilon): self.threat_model(epsilon)}

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Check the network, and that the attack can work on it."""
        super().check_shapes(image_shape, num_classes)
        check_attack("model.attack", self.attack, self.classifier, self.threat_model(self.epsilon), image_shape)

    def mixed_risk(self, x: Tensor, y: Tensor, adversarial: bool = True) -> Tensor:
        """Mean of the cross-entropy on clean images and on attacked images, a scalar.

        The attack ascends the loss of the classes that the clean pass predicts, so that no label leaks into the images
        (Kurakin et al. 2017). As in the published code of PNI and Learn2Perturb, this pass is in the network's own
        mode.

        Args:
            x: images (B, C, H, W).
            y: labels (B,).
            adversarial: whether to attack; if false, return the cross-entropy on clean images alone.
        """
        logits = self(x)
        clean = F.cross_entropy(logits, y)
        if not adversarial:
            return clean
        x_adv = self.attack(self.classifier, self.threat_model(self.current_epsilon), x, logits.argmax(1))
        return 0.5 * clean + 0.5 * F.cross_entropy(self(x_adv), y)
