"""Towards Deep Learning Models Resistant to Adversarial Attacks (Madry, Makelov, Schmidt, Tsipras, Vladu 2018)."""

from __future__ import annotations

import torch.nn.functional as F

from lightning_modules.base import AttackedClassifier, Batch


class AdversarialTraining(AttackedClassifier):
    """Cross-entropy on attacked images (eq. 2.1). Arguments are those of :class:`AttackedClassifier`.

    With ``attack: robust.attacks.FGSM``, a random start and step size 1.25, this is fast adversarial training (Wong,
    Rice, Kolter 2020).
    """

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Attack the batch and minimise the cross-entropy on the attacked images."""
        x, y = batch
        x_adv = self.attack(self.classifier, self.threat_model(self.current_epsilon), x, y)
        loss = F.cross_entropy(self(x_adv), y)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
