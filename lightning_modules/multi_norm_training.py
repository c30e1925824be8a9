"""Adversarial Training and Robustness for Multiple Perturbations (Tramer, Boneh 2019): the average and the maximum."""

from __future__ import annotations

from typing import Literal

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim import SGD

from lightning_modules.attacked import MultiNormClassifier, attacks_by_norm
from lightning_modules.base import Batch
from robust.attacks import PGD
from robust.errors import require
from robust.losses import cross_entropy


class MultiNormTraining(MultiNormClassifier):
    """Cross-entropy on the attacked images of every norm: their mean, or the largest for each example.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: radius in linf, in pixel units.
        epsilon_l2: radius in l2.
        epsilon_l1: radius in l1.
        combine: ``"average"`` (Adv_avg) or ``"maximum"`` (Adv_max).
        attack_linf: attack in that norm; by default those of :class:`lightning_modules.MNGAC`.
        attack_l2: likewise.
        attack_l1: likewise.
        optimizer: the classifier's.
        lr_scheduler: its learning-rate schedule.
        gradient_clip: largest norm of the gradient.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        epsilon: float = 8 / 255,
        epsilon_l2: float = 128 / 255,
        epsilon_l1: float = 2000 / 255,
        combine: Literal["average", "maximum"] = "average",
        attack_linf: PGD | None = None,
        attack_l2: PGD | None = None,
        attack_l1: PGD | None = None,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.21, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        require(combine in ("average", "maximum"), "model.combine", combine, "give average or maximum")
        super().__init__(classifier, epsilon, epsilon_l2, epsilon_l1, gradient_clip)
        self.combine = combine
        self.attacks = attacks_by_norm(attack_linf, attack_l2, attack_l1)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Attack in all norms, then descend on the mean or the maximum of the losses (their eq. 2 and 3)."""
        x, y = batch
        balls = self.balls(self.ramp)
        attacked = [attack(self.classifier, balls[norm], x, y) for norm, attack in self.attacks.items()]
        each = torch.stack([cross_entropy(self(x_adv), y) for x_adv in attacked])
        loss = (each.mean(0) if self.combine == "average" else each.amax(0)).mean()
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]  # noqa: ANN201, D102 - Lightning's type is a maze
        optimizer = self.optimizer(self.classifier.parameters())
        return [optimizer], [] if self.lr_scheduler is None else [self.lr_scheduler(optimizer)]
