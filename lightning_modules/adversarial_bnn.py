"""Adv-BNN: Improved Adversarial Defense through Robust Bayesian Neural Network (Liu, Li, Wu, Hsieh 2019).

| symbol | here | what |
| --- | --- | --- |
| mu, sigma | ``GaussianWeight`` | learned mean and std of a weight |
| sigma_0 | ``prior_std`` | std of the prior N(0, sigma_0^2) of every weight; 0.08 in the authors' script |
| alpha | ``kl_weight`` | weight of the divergence from the prior; 1 is the variational bound |
| N | number of training images | divides the divergence |

The network's setting ``BayesianWeights.initial_std`` is the initial sigma, by default 0.08 as for the prior. The
authors' script starts at exp(0.08) = 1.083, because it assigns 0.08 to the logarithm of sigma.

The paper predicts by the mean probability over several passes; evaluations here report the mean accuracy over single
passes and the accuracy of the majority vote. The authors' code begins each stage of its schedule with a new Adam; a
schedule here keeps the moments.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Adam

from lightning_modules.base import AttackedClassifier, Batch, num_images
from robust.errors import require
from robust.networks import GaussianWeight, divergence


class AdversarialBNN(AttackedClassifier):
    """Variational inference of the distribution of weights, on attacked images.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K): ``robust.networks.BayesianWeights``.
        prior_std: std of the prior, positive.
        kl_weight: weight of the divergence, not negative.
        optimizer: optimizer of means and stds, without weight decay, which the prior replaces.
        **settings: settings of :class:`AttackedClassifier`; each step of the attack draws new weights.

    Raises:
        SettingError: if a setting is out of its range, or the network has no Gaussian weights.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        prior_std: float = 0.08,
        kl_weight: float = 1.0,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=0.01),
        **settings: Any,
    ) -> None:
        super().__init__(classifier, optimizer=optimizer, **settings)
        bayesian = any(isinstance(module, GaussianWeight) for module in classifier.modules())
        name = type(classifier).__name__
        require(bayesian, "model.classifier", name, "wrap it in robust.networks.BayesianWeights")
        require(prior_std > 0, "model.prior_std", prior_std, "give a positive std")
        require(kl_weight >= 0, "model.kl_weight", kl_weight, "give 0 (no prior) or more")
        self.prior_std, self.kl_weight = prior_std, kl_weight

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise the variational bound on attacked images."""
        x, y = batch
        x_adv = self.attack(self.classifier, self.threat_model(self.current_epsilon), x, y)
        kl = self.kl_per_image()
        loss = F.cross_entropy(self(x_adv), y) + self.kl_weight * kl
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log("train/kl", kl.detach())

    def kl_per_image(self) -> Tensor:
        """Divergence from the prior divided by the number of training images, a scalar."""
        loader = self.trainer.train_dataloader
        assert loader is not None
        remedy = "the divergence is divided by the number of training images; give a data set with a length"
        images = num_images(loader)
        require(images is not None, "data", f"{type(loader.dataset).__name__} without a length", remedy)
        assert images is not None
        return divergence(self.classifier, self.prior_std) / images
