"""What the methods that train on attacks share: one network, one optimizer, a norm ball, an attack."""

from __future__ import annotations

import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD

from lightning_modules.base import RobustClassifier
from robust.attacks import PGD
from robust.errors import require
from robust.threat_models import Norm, ThreatModel, ball


class AttackedClassifier(RobustClassifier):
    """Base of adversarial training and its kin: subclasses write ``training_step``, in terms of :meth:`perturb`.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: radius of the threat model, in pixel units.
        norm: in which it is a ball.
        attack: what finds the training examples; by default ten steps of PGD from a random start.
        optimizer: the classifier's.
        lr_scheduler: its learning-rate schedule, stepped once an epoch.
        gradient_clip: largest norm of the gradient.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        epsilon: float = 8 / 255,
        norm: Norm = "linf",
        attack: PGD | None = None,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        # l2 and l1 balls are larger than a pixel's range
        super().__init__(classifier, epsilon, gradient_clip, largest_epsilon=1.0 if norm == "linf" else float("inf"))
        ball(norm, epsilon)  # raises if there is no such norm
        self.norm: Norm = norm
        self.attack = PGD(steps=10) if attack is None else attack
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def threat_model(self, epsilon: float) -> ThreatModel:
        """The ball of this radius in the module's norm."""
        return ball(self.norm, epsilon)

    def threat_models(self, x: Tensor, epsilon: float) -> dict[str, ThreatModel]:
        """That ball, under the norm's name."""
        return {self.norm: self.threat_model(epsilon)}

    def half_adversarial_risk(self, x: Tensor, y: Tensor, adversarial: bool = True) -> Tensor:
        """Half the cross-entropy on the images, half on attacked ones; without ``adversarial`` that on the images.

        The attack is against the network's own predictions, so that no label leaks into the images (Kurakin et al.
        2017): those of the clean pass, in the network's own mode, as in the published code of PNI and Learn2Perturb,
        which train on this loss.

        Args:
            x: images (B, C, H, W).
            y: labels (B,).
            adversarial: whether to attack at all.
        """
        logits = self(x)
        clean = F.cross_entropy(logits, y)
        if not adversarial:
            return clean
        x_adv = self.attack(self.classifier, self.threat_model(self.current_epsilon), x, logits.argmax(1))
        return 0.5 * clean + 0.5 * F.cross_entropy(self(x_adv), y)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]  # noqa: ANN201, D102 - Lightning's type is a maze
        optimizer = self.optimizer(self.classifier.parameters())
        return [optimizer], [] if self.lr_scheduler is None else [self.lr_scheduler(optimizer)]


class MultiNormClassifier(RobustClassifier):
    """Base of training against the union of a linf, an l2 and an l1 ball: subclasses write ``training_step``.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: radius in linf, in pixel units. A schedule of epsilon scales all three alike.
        epsilon_l2: radius in l2.
        epsilon_l1: radius in l1.
        gradient_clip: largest norm of the gradient of all parameters that a step moves; none by default.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        epsilon: float = 8 / 255,
        epsilon_l2: float = 128 / 255,
        epsilon_l1: float = 2000 / 255,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__(classifier, epsilon, gradient_clip)
        for name, radius in (("model.epsilon_l2", epsilon_l2), ("model.epsilon_l1", epsilon_l1)):
            require(radius > 0, name, radius, "give a positive norm over all pixels in [0, 1]")
        self.radii: dict[Norm, float] = {"linf": epsilon, "l2": epsilon_l2, "l1": epsilon_l1}

    def balls(self, scale: float) -> dict[Norm, ThreatModel]:
        """The three balls, by norm, with ``scale`` times their radii."""
        return {norm: ball(norm, scale * radius) for norm, radius in self.radii.items()}

    def threat_models(self, x: Tensor, epsilon: float) -> dict[str, ThreatModel]:
        """The three balls, under the norms' names, where ``epsilon`` is the radius in linf."""
        return dict(self.balls(epsilon / self.epsilon).items())


def attacks_by_norm(linf: PGD | None, l2: PGD | None, l1: PGD | None) -> dict[Norm, PGD]:
    """An attack for each norm; by default PGD as multi-norm training (MNG-AC) configures it for CIFAR-10."""
    return {
        "linf": linf or PGD(10, 1 / 255, absolute=True, mode="frozen"),
        "l2": l2 or PGD(10, 30 / 255, absolute=True, mode="frozen"),
        "l1": l1 or PGD(20, 1.0, absolute=True, mode="frozen"),
    }
