"""Base of the methods that train against several norm balls at once."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD

from lightning_modules.base.blank_runs import check_attack
from lightning_modules.base.robust_classifier import RobustClassifier
from robust.attacks import PGD
from robust.errors import require
from robust.metric_names.registry import threat_model_name
from robust.threat_models import Norm, ThreatModel, ball


class MultiNormClassifier(RobustClassifier):
    """Base of training against the union of a linf, an l2 and an l1 ball; subclasses write ``training_step``.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: radius in linf, in pixel units. A schedule of epsilon scales all three equally.
        epsilon_l2: radius in l2.
        epsilon_l1: radius in l1.
        optimizer: optimizer of the classifier.
        **settings: settings of :class:`RobustClassifier`.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        epsilon: float = 8 / 255,
        *,
        epsilon_l2: float = 128 / 255,
        epsilon_l1: float = 2000 / 255,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.21, momentum=0.9, weight_decay=5e-4),
        **settings: Any,
    ) -> None:
        super().__init__(classifier, epsilon, optimizer=optimizer, **settings)
        for name, radius in (("model.epsilon_l2", epsilon_l2), ("model.epsilon_l1", epsilon_l1)):
            require(radius > 0, name, radius, "give a positive radius: a norm over all pixels in [0, 1]")
        self.attacks: dict[Norm, PGD] = {}
        self.radii: dict[Norm, float] = {"linf": epsilon, "l2": epsilon_l2, "l1": epsilon_l1}

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Check the network, and that the attacks can work on it."""
        super().check_shapes(image_shape, num_classes)
        for norm, attack in self.attacks.items():
            check_attack(f"model.attack_{norm}", attack, self.classifier, self.balls(1.0)[norm], image_shape)

    def balls(self, scale: float) -> dict[Norm, ThreatModel]:
        """The three balls, by norm, with ``scale`` times their radii."""
        return {norm: ball(norm, scale * radius) for norm, radius in self.radii.items()}

    def threat_models(self, x: Tensor, epsilon: float) -> dict[str, ThreatModel]:
        """The three balls by their names in metrics; ``epsilon`` is the radius in linf."""
        scale = epsilon / self.epsilon
        balls = self.balls(scale)
        return {threat_model_name(norm, scale * radius): balls[norm] for norm, radius in self.radii.items()}


def attacks_by_norm(linf: PGD | None, l2: PGD | None, l1: PGD | None) -> dict[Norm, PGD]:
    """One attack for each norm; by default PGD with the settings of MNG-AC for CIFAR-10."""
    return {
        "linf": linf or PGD(10, 1 / 255, absolute=True, mode="frozen"),
        "l2": l2 or PGD(10, 30 / 255, absolute=True, mode="frozen"),
        "l1": l1 or PGD(20, 1.0, absolute=True, mode="frozen"),
    }
