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
        epsilon, delta = self.current_epsilon, self._carried(x)
        for _ in range(self.replays):
            x_adv = (x + delta).clamp(0, 1).requires_grad_()
            with fast_image_gradients(self.classifier):
                loss = F.cross_entropy(self.classifier(x_adv), y)
            self.descend(loss, self.all_optimizers()[0])
            assert x_adv.grad is not None
            delta = (delta + epsilon * x_adv.grad.sign()).clamp(-epsilon, epsilon)
        self._carry(delta)
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)

    def begin_run(self) -> None:
        """Drop the perturbation of an earlier training."""
        super().begin_run()
        if self.trainer.state.fn == "fit":
            self._perturbation = None

    def _carried(self, x: Tensor) -> Tensor:
        """The perturbation of the last batch for these images, zero where it had fewer."""
        delta = torch.zeros_like(x)
        if self._perturbation is not None:
            delta[: len(self._perturbation)] = self._perturbation[: len(x)].to(x.device)
        return delta

    def _carry(self, delta: Tensor) -> None:
        """Store the perturbation for the next batch, beside the rest of an earlier, larger batch."""
        rest = delta[:0] if self._perturbation is None else self._perturbation[len(delta) :].to(delta.device)
        self._perturbation = torch.cat([delta, rest])

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
