"""Adversarial Robustness Against the Union of Multiple Perturbation Models (Maini, Wong, Kolter 2020): MSD."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from lightning_modules.base import Batch, MultiNormClassifier
from robust.attacks import MultiSteepestDescent


class MSD(MultiNormClassifier):
    """Cross-entropy on the images of one attack in the union of the balls.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        attack: attack in the union; by default 20 steps in the network's own mode, the baseline of MNG-AC.
        **settings: settings of :class:`MultiNormClassifier`.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        attack: MultiSteepestDescent | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(classifier, **settings)
        self.attack = MultiSteepestDescent(mode="frozen") if attack is None else attack

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Attack the batch and minimise the cross-entropy on the attacked images."""
        x, y = batch
        x_adv = self.attack(self.classifier, self.balls(self.ramp), x, y)
        loss = F.cross_entropy(self(x_adv), y)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
