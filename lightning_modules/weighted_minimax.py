"""Are Adversarial Examples Created Equal? A Learnable Weighted Minimax Risk (Zeng, Zhu, Goldstein, Huang 2021).

| symbol | here | what |
| --- | --- | --- |
| margin(f, x', y) | ``probability_margin`` | p_y minus the largest other probability, of the attacked image (Def. 1) |
| s = exp(-alpha margin) | ``vulnerability_weight`` | weight of an example (eq. 7) |
| alpha | ``alpha`` | 0 gives the base method |
| 1 / lambda | ``beta`` | weight of the divergence in TRADES; none for adversarial training |

The weights are neither normalised nor detached, in the attack and in training. With detached weights, the gradient in
the logits has a cosine of 0.72 to 0.98 with this one. The authors' attack for TRADES stops before its first step; this
one does not.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import AttackedClassifier, Batch
from robust.attacks import PGD
from robust.errors import require
from robust.losses import cross_entropy, kl, vulnerability_weight
from robust.modes import attack_mode


class WeightedMinimax(AttackedClassifier):
    """Adversarial training or TRADES with a weight for each example, larger for smaller margins under attack.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        alpha: strength of the weights, not negative; weights are in [exp(-alpha), exp(alpha)].
        beta: weight of the divergence in TRADES; None trains on the weighted cross-entropy of attacked images alone.
        detach_weight: whether to stop the gradient through the weights.
        attack: attack that maximises the weighted loss. By default ten steps of PGD: without ``beta`` from a random
            start and in the network's own mode, with ``beta`` from a Gaussian start and in evaluation mode.
        **settings: settings of :class:`AttackedClassifier`.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        alpha: float = 1.0,
        beta: float | None = None,
        detach_weight: bool = False,
        attack: PGD | None = None,
        **settings: Any,
    ) -> None:
        require(alpha >= 0, "model.alpha", alpha, "give 0 (equal weights) or more")
        require(beta is None or beta >= 0, "model.beta", beta, "give a weight of 0 or more, or null")
        default = PGD(steps=10, mode="keep") if beta is None else PGD(steps=10, start="gaussian")
        super().__init__(classifier, attack=default if attack is None else attack, **settings)
        remedy = "turn it off: the attack's loss is of whole batches"
        require(not self.attack.early_stop, "model.attack.early_stop", True, remedy)
        self.alpha, self.beta, self.detach_weight = alpha, beta, detach_weight

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: minimise the weighted cross-entropy of attacked images, or the weighted risk of TRADES."""
        loss = self._adversarial_risk(*batch) if self.beta is None else self._trades_risk(*batch, self.beta)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)

    def _adversarial_risk(self, x: Tensor, y: Tensor) -> Tensor:
        def weighted(logits: Tensor, y: Tensor) -> Tensor:
            return self.weight(logits, y) * cross_entropy(logits, y)

        x_adv = self.attack(self.classifier, self.threat_model(self.current_epsilon), x, y, loss=weighted)
        return weighted(self(x_adv), y).mean()

    def _trades_risk(self, x: Tensor, y: Tensor, beta: float) -> Tensor:
        def weighted(logits: Tensor, reference: Tensor) -> Tensor:
            return self.weight(logits, y) * kl(logits, reference)

        with attack_mode(self.classifier, self.attack.mode):
            reference = self(x)
        ball = self.threat_model(self.current_epsilon)
        x_adv = self.attack(self.classifier, ball, x, y, loss=lambda logits, _: weighted(logits, reference))
        clean = self(x)
        return F.cross_entropy(clean, y) + beta * weighted(self(x_adv), clean).mean()

    def weight(self, logits: Tensor, y: Tensor) -> Tensor:
        """Weight of each example (B,), from its attacked logits (B, K)."""
        weight = vulnerability_weight(logits, y, self.alpha)
        return weight.detach() if self.detach_weight else weight
