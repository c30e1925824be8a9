"""Adversarial Training for Free! (Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein 2019)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import Batch, RobustClassifier
from robust.convolution import fast_image_gradients
from robust.errors import require


class FreeAdversarialTraining(RobustClassifier):
    """Replays each batch; each backward pass updates both the weights and the perturbation (Algorithm 1).

    The perturbation of a batch starts from that of the previous batch. The threat model is the linf ball. Divide the
    number of epochs by the number of replays, as the paper does.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        replays: number of steps on each batch, at least 1 (m in the paper).
        **settings: settings of :class:`RobustClassifier`.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        replays: int = 8,
        **settings: Any,
    ) -> None:
        require(replays >= 1, "model.replays", replays, "give at least 1")
        super().__init__(classifier, **settings)
        self.replays = replays
        self._perturbation: Tensor | None = None  # not a buffer, since each process has its own part

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1, lines 5 to 14."""
        x, y = batch
        epsilon = self.current_epsilon
        delta, last = torch.zeros_like(x), self._perturbation
        if last is not None:
            delta[: len(last)] = last[: len(x)].to(x.device)
        for _ in range(self.replays):
            x_adv = (x + delta).clamp(0, 1).requires_grad_()
            with fast_image_gradients(self.classifier):
                loss = F.cross_entropy(self.classifier(x_adv), y)
            self.descend(loss, self.all_optimizers()[0])
            assert x_adv.grad is not None
            delta = (delta + epsilon * x_adv.grad.sign()).clamp(-epsilon, epsilon)
        rest = None if last is None else last[len(x) :]  # of an earlier, larger batch
        self._perturbation = delta if rest is None or len(rest) == 0 else torch.cat([delta, rest.to(x.device)])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the perturbation of the global batch, gathered from all processes."""
        super().on_save_checkpoint(checkpoint)
        if self._perturbation is not None:
            checkpoint["perturbation"] = self.gather(self._perturbation)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load this process's part of the perturbation."""
        super().on_load_checkpoint(checkpoint)
        if "perturbation" in checkpoint:
            world_size = self._trainer.world_size if self._trainer is not None else 1
            rank = self._trainer.global_rank if self._trainer is not None else 0
            self._perturbation = checkpoint["perturbation"].chunk(world_size)[rank]
