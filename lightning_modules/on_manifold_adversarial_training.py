"""Disentangling Adversarial Robustness and Generalization (Stutz, Hein, Schiele 2019): on-manifold training.

| symbol | here | what |
| --- | --- | --- |
| dec | ``autoencoder`` | one decoder for all classes, of a Wasserstein autoencoder instead of a VAE-GAN |
| zeta | ``attack`` | perturbation of the codes that maximises the cross-entropy (eq. 4) |
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import Batch, ManifoldClassifier
from robust.attacks import LatentAttack
from robust.errors import require
from robust.networks import Autoencoder
from robust.random import part


class OnManifoldAdversarialTraining(ManifoldClassifier):
    """Trains on one half of each batch, and on images decoded from attacked codes of the other half.

    A code is attacked only if no entry exceeds ``safe_code``; other codes are decoded unchanged. The attack stays in
    the range of all codes that the training has encoded so far, in all processes.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        autoencoder: autoencoder of the architecture that ``WassersteinAutoencoder`` trained; frozen here.
        attack: attack on the codes, with its own radius; by default 40 steps in the linf ball of radius 0.1.
        safe_code: largest absolute value of the entries of a code that is attacked.
        **settings: settings of :class:`ManifoldClassifier`.

    Raises:
        SettingError: if a setting is out of its range, or networks, checkpoint and data do not fit together.
    """

    ramped = False
    code_low: Tensor
    code_high: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        autoencoder: Autoencoder,
        *,
        attack: LatentAttack | None = None,
        safe_code: float = 2.0,
        **settings: Any,
    ) -> None:
        require(safe_code > 0, "model.safe_code", safe_code, "give a positive size")
        super().__init__(classifier, autoencoder, **settings)
        self.attack = LatentAttack() if attack is None else attack
        self.safe_code = safe_code
        self.register_buffer("code_low", torch.full((autoencoder.code_size,), torch.inf))
        self.register_buffer("code_high", torch.full((autoencoder.code_size,), -torch.inf))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Attack the codes of every other image, then minimise the cross-entropy on clean and decoded images."""
        x, y = batch
        half = torch.tensor(self.batch_indices(len(x)), device=x.device) % 2 == 1
        x = x.clone()
        with part(half):
            x[half] = self.attacked(x[half], y[half]).to(x.dtype)  # autocast changes the type of decoded images
        loss = F.cross_entropy(self(x), y)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)

    @torch.no_grad()
    def attacked(self, x: Tensor, y: Tensor) -> Tensor:
        """Images (B, C, H, W) decoded from attacked codes, or from the original codes if these are not attacked."""
        codes = self.autoencoder.encode(x)
        # gather the limits, not the codes: processes may differ by one in their number of codes
        self.code_low = self.gather(torch.cat([codes, self.code_low[None]]).amin(0, keepdim=True)).amin(0)
        self.code_high = self.gather(torch.cat([codes, self.code_high[None]]).amax(0, keepdim=True)).amax(0)
        if len(x) == 0:
            return x
        safe = codes.abs().amax(1, keepdim=True) <= self.safe_code
        codes_adv = self.attack(self.classifier, self.autoencoder.decode, codes, y, self.code_low, self.code_high)
        return self.autoencoder.decode(torch.where(safe, codes_adv, codes))
