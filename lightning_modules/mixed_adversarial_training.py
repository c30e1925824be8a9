"""Adversarial Machine Learning at Scale (Kurakin, Goodfellow, Bengio 2017), with PGD.

The papers on stochastic defences call this baseline "Vanilla".
"""

from __future__ import annotations

from lightning_modules.base import AttackedClassifier, Batch


class MixedAdversarialTraining(AttackedClassifier):
    """Mean of the cross-entropy on clean images and on attacked images.

    The attack ascends the loss of the predicted labels. Arguments are those of :class:`AttackedClassifier`.
    """

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise the mixed risk."""
        loss = self.mixed_risk(*batch)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
