"""Theoretically Principled Trade-off between Robustness and Accuracy (Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan 2019).

| symbol | here | what |
| --- | --- | --- |
| 1 / lambda | ``beta`` | weight of the robust term |
| A(x) | ``attack`` | maximises KL(f(x) || f(x')), starting at x + 0.001 N(0, 1) |
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import nn
from torch.optim import SGD

from lightning_modules.base import AttackedClassifier, Batch
from robust.attacks import PGD
from robust.errors import require
from robust.losses import kl
from robust.modes import attack_mode


class TRADES(AttackedClassifier):
    """Cross-entropy on clean images, plus beta times the divergence between clean and attacked predictions.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        beta: weight of the divergence, not negative.
        attack: attack that maximises the divergence; by default ten steps of PGD from a Gaussian start, in evaluation
            mode.
        optimizer: optimizer of the classifier.
        **settings: settings of :class:`AttackedClassifier`.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        beta: float = 6.0,
        attack: PGD | None = None,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=2e-4),
        **settings: Any,
    ) -> None:
        require(beta >= 0, "model.beta", beta, "give a weight of 0 or more")
        default = PGD(steps=10, start="gaussian")
        super().__init__(classifier, attack=default if attack is None else attack, optimizer=optimizer, **settings)
        remedy = "turn it off: the attack's loss is of whole batches"
        require(not self.attack.early_stop, "model.attack.early_stop", True, remedy)
        self.beta = beta

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: attack the batch, then minimise the cross-entropy plus beta times the divergence."""
        x, y = batch
        with attack_mode(self.classifier, self.attack.mode):
            reference = self(x)
        ball = self.threat_model(self.current_epsilon)
        x_adv = self.attack(self.classifier, ball, x, y, loss=lambda logits, _: kl(logits, reference))
        clean = self(x)
        loss = F.cross_entropy(clean, y) + self.beta * kl(self(x_adv), clean).mean()
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
