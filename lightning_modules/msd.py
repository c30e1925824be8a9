"""Adversarial Robustness Against the Union of Multiple Perturbation Models (Maini, Wong, Kolter 2020): MSD."""

from __future__ import annotations

import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim import SGD

from lightning_modules.attacked import MultiNormClassifier
from lightning_modules.base import Batch
from robust.attacks import MultiSteepestDescent


class MSD(MultiNormClassifier):
    """Cross-entropy on the images of one attack in the union of the balls.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: radius in linf, in pixel units.
        epsilon_l2: radius in l2.
        epsilon_l1: radius in l1.
        attack: by default the 20 steps that MNG-AC compares itself with, in the network's own mode.
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
        attack: MultiSteepestDescent | None = None,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.21, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__(classifier, epsilon, epsilon_l2, epsilon_l1, gradient_clip)
        self.attack = MultiSteepestDescent(mode="frozen") if attack is None else attack
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Attack, then descend on what was found."""
        x, y = batch
        x_adv = self.attack(self.classifier, self.balls(self.ramp), x, y)
        loss = F.cross_entropy(self(x_adv), y)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]  # noqa: ANN201, D102 - Lightning's type is a maze
        optimizer = self.optimizer(self.classifier.parameters())
        return [optimizer], [] if self.lr_scheduler is None else [self.lr_scheduler(optimizer)]
