"""Adversarial Training and Robustness for Multiple Perturbations (Tramer, Boneh 2019): the average and the maximum."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from lightning_modules.base import Batch, MultiNormClassifier, attacks_by_norm
from robust.attacks import PGD
from robust.errors import require
from robust.losses import cross_entropy


class MultiNormTraining(MultiNormClassifier):
    """Cross-entropy on images attacked in every norm: its mean over norms, or its maximum for each example.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        combine: combination of the losses, ``"average"`` (Adv_avg) or ``"maximum"`` (Adv_max).
        attack_linf: attack in linf; by default that of :class:`lightning_modules.MNGAC`.
        attack_l2: attack in l2; by default that of the same class.
        attack_l1: attack in l1; by default that of the same class.
        **settings: settings of :class:`MultiNormClassifier`.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        combine: Literal["average", "maximum"] = "average",
        attack_linf: PGD | None = None,
        attack_l2: PGD | None = None,
        attack_l1: PGD | None = None,
        **settings: Any,
    ) -> None:
        require(combine in ("average", "maximum"), "model.combine", combine, "give average or maximum")
        super().__init__(classifier, **settings)
        self.combine = combine
        self.attacks = attacks_by_norm(attack_linf, attack_l2, attack_l1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Attack in all norms and minimise the mean or the maximum of the losses (eq. 2 and 3)."""
        x, y = batch
        balls = self.balls(self.ramp)
        attacked = [attack(self.classifier, balls[norm], x, y) for norm, attack in self.attacks.items()]
        losses = torch.stack([cross_entropy(self(x_adv), y) for x_adv in attacked])
        loss = (losses.mean(0) if self.combine == "average" else losses.amax(0)).mean()
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
