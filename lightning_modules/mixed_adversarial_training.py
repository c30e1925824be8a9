"""Adversarial Machine Learning at Scale (Kurakin, Goodfellow, Bengio 2017), with PGD: half clean, half attacked images.

The papers on stochastic defences compare with it under the name "Vanilla".
"""

from __future__ import annotations

from lightning_modules.base import AttackedClassifier, Batch


class MixedAdversarialTraining(AttackedClassifier):
    """Half the cross-entropy on the images, half on attacked ones. Arguments are those of :class:`AttackedClassifier`.

    The attack is against the predicted labels.
    """

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Descend on both halves."""
        loss = self.half_adversarial_risk(*batch)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True)
