"""Standard training: the undefended baseline of every defence."""

from __future__ import annotations

import torch.nn.functional as F

from lightning_modules.base import Batch, RobustClassifier


class StandardTraining(RobustClassifier):
    """Cross-entropy on unperturbed images.

    Arguments are those of :class:`RobustClassifier`; training does not use ``epsilon``.
    """

    ramped = False
    half_precision = True

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise the cross-entropy."""
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
