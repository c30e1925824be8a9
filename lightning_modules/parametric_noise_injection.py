"""Parametric Noise Injection: Trainable Randomness to Improve DNN Robustness (He, Rakin, Fan 2019).

| symbol | here | what |
| --- | --- | --- |
| alpha | ``WeightNoise.alpha`` | learned strength of a weight tensor's noise, in units of the std of its entries |
| w_c, w_a = 1/2 | ``mixed_risk`` | weights of the loss on clean and on attacked images |

As in the authors' code, the weights' optimizer also updates alpha, on the same loss and with the same weight decay.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import nn
from torch.optim import SGD

from lightning_modules.base import AttackedClassifier, Batch
from robust.attacks import PGD
from robust.errors import require
from robust.networks import WeightNoise


class ParametricNoiseInjection(AttackedClassifier):
    """Adversarial training of a network with noise of learned strength on its weights.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K): ``robust.networks.NoisyWeights``, whose setting
            ``granularity`` gives the paper's variants.
        adversarial_delay: number of epochs on clean images before attacked images join the loss.
        attack: attack on the predicted labels that makes the training images; by default PGD as in the authors' code.
        optimizer: optimizer of the classifier.
        **settings: settings of :class:`AttackedClassifier`.

    Raises:
        SettingError: if a setting is out of its range, or the network has no noise on its weights.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        adversarial_delay: int = 5,
        attack: PGD | None = None,
        optimizer: OptimizerCallable = lambda params: SGD(
            params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=3e-4
        ),
        **settings: Any,
    ) -> None:
        default = PGD(steps=7, step_size=0.01, absolute=True)
        super().__init__(classifier, attack=default if attack is None else attack, optimizer=optimizer, **settings)
        name = type(classifier).__name__
        require(bool(self.strengths), "model.classifier", name, "wrap it in robust.networks.NoisyWeights")
        delay = adversarial_delay
        require(delay >= 0, "model.adversarial_delay", delay, "give a number of epochs, 0 or more")
        self.adversarial_delay = adversarial_delay

    @property
    def delays(self) -> dict[str, int]:
        """Attacked images join after epochs."""
        return {"adversarial_delay": self.adversarial_delay}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Update weights and noise strengths in one step; each pass draws new noise."""
        loss = self.mixed_risk(*batch, adversarial=self.current_epoch >= self.adversarial_delay)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log("train/mean_strength", torch.cat([alpha.detach().flatten() for alpha in self.strengths]).mean())

    @property
    def strengths(self) -> list[nn.Parameter]:
        """Alpha of each noisy weight."""
        return [module.alpha for module in self.classifier.modules() if isinstance(module, WeightNoise)]
