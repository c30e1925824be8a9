"""Formal Guarantees on the Robustness of a Classifier against Adversarial Manipulation (Hein, Andriushchenko 2017).

| symbol | here | what |
| --- | --- | --- |
| Omega(f) | ``robust.losses.cross_lipschitz`` | mean squared distance between the gradients of two classes |
| lambda | ``penalty_weight`` | weight of the penalty |
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD

from lightning_modules.base import Batch, RobustClassifier
from robust.errors import require
from robust.losses import cross_lipschitz
from robust.modes import attack_mode


class CrossLipschitz(RobustClassifier):
    """Cross-entropy, plus lambda times the cross-Lipschitz penalty on the logits (eq. 5-6).

    The penalty is computed in evaluation mode: in training mode, batch normalisation would mix the gradients of a
    batch's images, and dropout would change the network. It needs one backward pass for each class.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: size of the threat model in evaluation, in pixel units; training does not use it.
        penalty_weight: lambda, not negative; choose it on validation data.
        penalty_fraction: fraction of images with a penalty: every k-th image, k = round(1 / fraction); a smaller
            fraction saves time.
        optimizer: optimizer of the classifier.
        **settings: settings of :class:`RobustClassifier`.

    Raises:
        SettingError: if a setting is out of its range.
    """

    ramped = False

    def __init__(
        self,
        classifier: nn.Module,
        *,
        epsilon: float = 0.1,
        penalty_weight: float = 0.01,
        penalty_fraction: float = 1.0,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.2, momentum=0.9),
        **settings: Any,
    ) -> None:
        require(penalty_weight >= 0, "model.penalty_weight", penalty_weight, "give a weight of 0 or more")
        require(0 < penalty_fraction <= 1, "model.penalty_fraction", penalty_fraction, "give a fraction in (0, 1]")
        super().__init__(classifier, epsilon, optimizer=optimizer, **settings)
        self.penalty_weight, self.penalty_fraction = penalty_weight, penalty_fraction

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise the cross-entropy plus lambda times the penalty."""
        x, y = batch
        natural = F.cross_entropy(self(x), y)  # first, since it updates the running statistics that the penalty reads
        penalty = self.mean_penalty(x)
        loss = natural + self.penalty_weight * penalty
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log_epoch_mean("train/penalty", penalty.expand(len(x)))

    def mean_penalty(self, x: Tensor) -> Tensor:
        """This process's part of the mean of Omega over every k-th image of the global batch.

        Returns:
            A scalar; its mean over processes is the mean over these images.
        """
        every = round(1 / self.penalty_fraction)
        chosen = [row for row, index in enumerate(self.batch_indices(len(x))) if index % every == 0]
        world = 1 if self._trainer is None else self.trainer.world_size
        total = len(range(0, world * len(x), every))
        return self.penalty(x[chosen]).sum() * (world / total) if chosen else x.new_zeros(())

    def penalty(self, x: Tensor) -> Tensor:
        """Omega of each image (B,)."""
        with attack_mode(self.classifier, "eval"), torch.enable_grad():
            x = x.detach().requires_grad_()
            return cross_lipschitz(self(x), x)
