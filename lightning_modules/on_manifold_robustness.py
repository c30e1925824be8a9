"""A General Framework for Defining and Optimizing Robustness (Tibo, Jaeger, Larsen 2022): training for R4.

| symbol | here | what |
| --- | --- | --- |
| S(x) | ``neighbours`` | dec(enc(x) + sigma N(0, 1)), eq. 13, of a frozen autoencoder |
| Sigma | ``epsilons`` | radii, drawn for each step from U(0, d) (Sec. 7) |
| w_im | ``pair_weights`` | mean over Sigma of 1 / (epsilon * number of samples in the ball) |
| lambda | ``score_weight`` | weight of the robustness term |

R4 measures agreement, which eq. 7 subtracts. The loss here adds the cross-entropy of two predictions, their
disagreement. Balls without a sample give no gradient, though they have almost all of the weight 1 / epsilon.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import Batch, ManifoldClassifier
from robust.errors import require
from robust.losses import soft_cross_entropy
from robust.networks import Autoencoder
from robust.random import randn_like, shared_rand
from robust.threat_models import diameter


class OnManifoldRobustness(ManifoldClassifier):
    """Trains a classifier to give an image and the images decoded from its noisy codes the same prediction.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        autoencoder: autoencoder of the architecture that ``WassersteinAutoencoder`` trained; frozen here.
        score_weight: lambda, not negative; choose it on validation data.
        sigma: std of the noise on the codes.
        num_samples: M, number of samples for each image.
        radii: number of radii that are drawn for a step.
        smallest_radius: lower limit of the radii.
        grad_through_reference: whether the gradient of the term also flows through f(x).
        **settings: settings of :class:`ManifoldClassifier`.

    Raises:
        SettingError: if a setting is out of its range, or networks, checkpoint and data do not fit together.
    """

    ramped = False

    def __init__(
        self,
        classifier: nn.Module,
        autoencoder: Autoencoder,
        *,
        score_weight: float = 1.0,
        sigma: float = 0.06,
        num_samples: int = 10,
        radii: int = 10,
        smallest_radius: float = 1e-3,
        grad_through_reference: bool = True,
        **settings: Any,
    ) -> None:
        require(score_weight >= 0, "model.score_weight", score_weight, "give a weight of 0 or more")
        require(sigma > 0, "model.sigma", sigma, "give a positive std")
        for name, count in (("num_samples", num_samples), ("radii", radii)):
            require(count >= 1, f"model.{name}", count, "give at least 1")
        require(smallest_radius > 0, "model.smallest_radius", smallest_radius, "give a positive distance")
        super().__init__(classifier, autoencoder, **settings)
        self.score_weight, self.sigma, self.num_samples = score_weight, sigma, num_samples
        self.radii, self.smallest_radius = radii, smallest_radius
        self.grad_through_reference = grad_through_reference

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise the cross-entropy plus lambda times the weighted disagreement with the samples."""
        x, y = batch
        neighbours = self.neighbours(x)
        epsilons = self.draw_radii(x)
        weights = pair_weights((neighbours - x[:, None]).flatten(2).norm(dim=2), epsilons)
        logits = self(x)
        reference = (logits if self.grad_through_reference else logits.detach())[:, None]
        others = self(neighbours.flatten(0, 1))
        disagreement = soft_cross_entropy(others, reference.expand(-1, self.num_samples, -1).flatten(0, 1))
        term = (weights * disagreement.view(weights.shape)).sum(1)
        loss = F.cross_entropy(logits, y) + self.score_weight * term.mean()
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log_epoch_mean("train/disagreement", disagreement)

    @torch.no_grad()
    def neighbours(self, x: Tensor) -> Tensor:
        """S(x): samples (B, M, C, H, W) in [0, 1] of images (B, C, H, W)."""
        codes = self.autoencoder.encode(x)[:, None].expand(-1, self.num_samples, -1)
        decoded = self.autoencoder.decode((codes + self.sigma * self.noise(codes)).flatten(0, 1))
        return decoded.clamp(0.0, 1.0).view(len(x), self.num_samples, *x.shape[1:])

    def noise(self, codes: Tensor) -> Tensor:
        """Standard normal noise of the codes' shape (B, M, Z)."""
        return randn_like(codes)

    def draw_radii(self, x: Tensor) -> Tensor:
        """Sigma: radii (E,) from U(0, d), the same for all images of the batch in all processes."""
        drawn = shared_rand((self.radii,), x)
        return (drawn * diameter(tuple(x.shape[1:]))).clamp(min=self.smallest_radius)


def pair_weights(distance: Tensor, epsilons: Tensor) -> Tensor:
    """w_im = mean over epsilon of 1[D_im < epsilon] / (epsilon * N_ie), (B, M); N_ie is the number of samples inside.

    Args:
        distance: D, distance of each sample to the image, (B, M).
        epsilons: radii (E,).
    """
    inside = distance[:, None] < epsilons[:, None]
    count = inside.sum(2, keepdim=True).clamp(min=1)
    return (inside / (epsilons[:, None] * count)).mean(1)
