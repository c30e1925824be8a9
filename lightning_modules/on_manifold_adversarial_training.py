"""Disentangling Adversarial Robustness and Generalization (Stutz, Hein, Schiele 2019): on-manifold training.

| symbol | here | what |
| --- | --- | --- |
| dec | ``autoencoder`` | one manifold for all classes; here the Wasserstein autoencoder's instead of a VAE-GAN's |
| zeta | ``attack`` | perturbation of the codes, ascending the cross-entropy (eq. 4) |
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
    """Half of each batch as it is; of the other half, decoded images whose codes an attack has moved.

    Codes are those of the batch's images. Only codes with all entries within ``safe_code`` are attacked, the others
    are decoded as they are. The attack stays in the range of all codes seen in training so far, on all processes.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        autoencoder: of the architecture that ``WassersteinAutoencoder`` has trained; frozen here.
        attack: on the codes, of a size of its own; by default 40 steps in the linf ball of 0.1.
        safe_code: largest absolute entry of a code that is attacked.
        **settings: those of :class:`ManifoldClassifier`.

    Raises:
        SettingError: if a setting is out of its range, or networks, checkpoint and data do not fit together.
    """

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
        """Attack the codes of every other image, then descend on clean and decoded ones."""
        x, y = batch
        half = torch.tensor(self.batch_indices(len(x)), device=x.device) % 2 == 1
        x = x.clone()
        with part(half):
            x[half] = self.attacked(x[half], y[half])
        loss = F.cross_entropy(self(x), y)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True)

    @torch.no_grad()
    def attacked(self, x: Tensor, y: Tensor) -> Tensor:
        """Decoded images (B, C, H, W), of attacked codes where these are safe."""
        codes = self.autoencoder.encode(x)
        # of all processes, whose numbers of codes may differ by one
        self.code_low = self.gather(torch.cat([codes, self.code_low[None]]).amin(0, keepdim=True)).amin(0)
        self.code_high = self.gather(torch.cat([codes, self.code_high[None]]).amax(0, keepdim=True)).amax(0)
        if len(x) == 0:
            return x
        safe = codes.abs().amax(1, keepdim=True) <= self.safe_code
        found = self.attack(self.classifier, self.autoencoder.decode, codes, y, self.code_low, self.code_high)
        return self.autoencoder.decode(torch.where(safe, found, codes))
