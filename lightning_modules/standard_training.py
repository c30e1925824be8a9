"""Standard training: the undefended network that every defence is compared with."""

from __future__ import annotations

import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim import SGD

from lightning_modules.base import Batch, RobustClassifier


class StandardTraining(RobustClassifier):
    """Cross-entropy on unperturbed images.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: size of the threat model in which it is evaluated, in pixel units; training does not use it.
        optimizer: the classifier's.
        lr_scheduler: its learning-rate schedule, stepped once an epoch.
        gradient_clip: largest norm of the gradient.
    """

    half_precision = True

    def __init__(
        self,
        classifier: nn.Module,
        epsilon: float = 8 / 255,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__(classifier, epsilon, gradient_clip)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise the cross-entropy."""
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]  # noqa: ANN201, D102 - Lightning's type is a maze
        optimizer = self.optimizer(self.classifier.parameters())
        return [optimizer], [] if self.lr_scheduler is None else [self.lr_scheduler(optimizer)]
