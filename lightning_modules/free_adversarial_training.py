"""Adversarial Training for Free! (Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein 2019)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD

from lightning_modules.attacked import AttackedClassifier
from lightning_modules.base import Batch
from robust.errors import require


class FreeAdversarialTraining(AttackedClassifier):
    """Each batch is replayed; one backward pass gives the step of the weights and of the perturbation (Algorithm 1).

    The perturbation goes on from batch to batch, of whatever images. The threat model is the linf ball. Reduce the
    number of epochs by the number of replays, as the paper does.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        epsilon: radius of the threat model, in pixel units.
        replays: steps on each batch, at least 1 (m in the paper).
        optimizer: the classifier's.
        lr_scheduler: its learning-rate schedule, stepped once an epoch.
        gradient_clip: largest norm of the gradient.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        epsilon: float = 8 / 255,
        replays: int = 8,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        require(replays >= 1, "model.replays", replays, "give at least 1")
        super().__init__(classifier, epsilon, "linf", None, optimizer, lr_scheduler, gradient_clip)
        self.replays = replays
        self._perturbation: Tensor | None = None  # no buffer: each process has its part

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1, lines 5 to 14."""
        x, y = batch
        epsilon = self.current_epsilon
        delta = torch.zeros_like(x) if self._perturbation is None else self._perturbation.to(x.device)
        for replay in range(self.replays):
            x_adv = (x + delta).clamp(0, 1).requires_grad_()
            loss = F.cross_entropy(self.classifier(x_adv), y)
            self.descend(loss, self.all_optimizers()[0], counts=replay == 0)
            assert x_adv.grad is not None
            delta = (delta + epsilon * x_adv.grad.sign()).clamp(-epsilon, epsilon)
        self._perturbation = delta
        self.log("train/loss", loss.detach(), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the perturbations of all processes, those of the global batch."""
        super().on_save_checkpoint(checkpoint)
        if self._perturbation is not None:
            checkpoint["perturbation"] = self.gathered(self._perturbation)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back this process's part of them."""
        super().on_load_checkpoint(checkpoint)
        if "perturbation" in checkpoint:
            world_size = self._trainer.world_size if self._trainer is not None else 1
            rank = self._trainer.global_rank if self._trainer is not None else 0
            self._perturbation = checkpoint["perturbation"].chunk(world_size)[rank]
