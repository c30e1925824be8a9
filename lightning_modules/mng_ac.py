"""Learning to Generate Noise for Multi-Attack Robustness (Madaan, Shin, Hwang 2021): MNG-AC.

| symbol | here | what |
| --- | --- | --- |
| A, B(x, epsilon) | ``attacks``, ``balls`` | one norm is drawn for each batch (SAT) |
| g_phi | ``generator`` | image -> noise, fitted to the budget of the batch's norm (MNG) |
| theta' | ``_looked_ahead`` | the classifier's weights after a plain step on the noisy images |
| beta | ``consistency`` | weight of the Jensen-Shannon divergence of clean, noisy and attacked predictions (AC) |

The generator minimises the loss of theta' on the attacked images. These do not depend on it: the gradient flows through
theta', by the mixed second derivative of the loss on the noisy images. Where paper and published code differ or leave
something open, docs/mng_ac.md says what is done here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from lightning_modules.base import Batch, GeneratorClassifier, MultiNormClassifier, attacks_by_norm
from robust.attacks import PGD
from robust.errors import require
from robust.losses import jensen_shannon
from robust.noise_fitting import LINF_FITS, LinfFit
from robust.random import randn_like, shared_choice
from robust.threat_models import ThreatModel


class MNGAC(GeneratorClassifier, MultiNormClassifier):
    """One norm a batch, a noise generator trained by looking ahead, and consistent predictions.

    With ``consistency`` 0 it is stochastic adversarial training (SAT). Without a generator the noise of the
    consistency is standard normal, fitted alike (SAT + AC).

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        generator: network from images to noise of their shape; none for normal noise.
        consistency: weight of the divergence, not negative; 12 in the published code.
        linf_fit: how noise is fitted in linf; see :func:`robust.noise_fitting.fit_linf`.
        attack_linf: attack on batches of that norm; by default those of the published code, for CIFAR-10.
        attack_l2: likewise.
        attack_l1: likewise.
        generator_optimizer: the generator's.
        **settings: those of :class:`GeneratorClassifier` and :class:`MultiNormClassifier`; the step ahead has the
            learning rate of ``optimizer``, and ``gradient_clip`` is of each network.

    Raises:
        SettingError: if a setting is out of its range, or there is a generator without consistency.
    """

    def __init__(
        self,
        classifier: nn.Module,
        generator: nn.Module | None = None,
        *,
        consistency: float = 12.0,
        linf_fit: LinfFit = "tanh",
        attack_linf: PGD | None = None,
        attack_l2: PGD | None = None,
        attack_l1: PGD | None = None,
        generator_optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.21, momentum=0.9, weight_decay=5e-4),
        **settings: Any,
    ) -> None:
        require(consistency >= 0, "model.consistency", consistency, "give a weight of 0 or more")
        remedy = "its noise is used by the consistency alone; give a positive model.consistency or generator null"
        require(generator is None or consistency > 0, "model.generator", type(generator).__name__, remedy)
        require(linf_fit in LINF_FITS, "model.linf_fit", linf_fit, f"give one of {', '.join(LINF_FITS)}")
        super().__init__(
            classifier=classifier, generator=generator, generator_optimizer=generator_optimizer, **settings
        )
        self.consistency, self.linf_fit = consistency, linf_fit
        self.attacks = attacks_by_norm(attack_linf, attack_l2, attack_l1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: attack in the batch's norm, the generator's step, then the classifier's."""
        x, y = batch
        norm = list(self.attacks)[shared_choice(len(self.attacks))]
        ball = self.balls(self.ramp)[norm]
        x_adv = self.attacks[norm](self.classifier, ball, x, y)
        if self.generator is not None:
            self._train_generator(self.generator, ball, x, x_adv, y)
        if self.consistency == 0:
            loss = F.cross_entropy(self(x_adv), y)
        else:
            with torch.no_grad():
                x_noisy = self.noisy(x, ball)
            # three passes, in the order of the published code: batch normalisation sees each kind by itself
            clean, noisy, attacked = self(x), self(x_noisy), self(x_adv)
            divergence = jensen_shannon(clean, noisy, attacked)
            loss = (F.cross_entropy(attacked, y, reduction="none") + self.consistency * divergence).mean()
            self.log("train/divergence", divergence.detach().mean())
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True)

    def noisy(self, x: Tensor, ball: ThreatModel) -> Tensor:
        """Images (B, C, H, W) with noise in the ball, the generator's or normal."""
        noise = randn_like(x) if self.generator is None else self.generator(x)
        return ball.fit_noise(x, noise.to(x.dtype), self.linf_fit)  # of another one under autocast

    def _train_generator(self, generator: nn.Module, ball: ThreatModel, x: Tensor, x_adv: Tensor, y: Tensor) -> None:
        """A step of the generator against the loss, on attacked images, of the classifier a step ahead."""
        optimizer, generator_optimizer = self.all_optimizers()
        weights = list(generator.parameters())
        with torch.autocast(x.device.type, enabled=False):  # second derivatives are too small for half precision
            loss = self.meta_loss(ball, x, x_adv, y, learning_rate(optimizer))
            self.check_finite(loss)
            gradients = torch.autograd.grad(loss, weights)
        # taken to the generator alone, so past the hooks by which DDP averages gradients
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = self.mean_over_ranks(gradient)
        size = torch.stack([gradient.norm() for gradient in gradients]).norm()
        self.step(generator_optimizer, counts=False)
        generator_optimizer.zero_grad()
        self.log_dict({"train/meta_loss": loss.detach(), "train/generator_gradient": size})

    def meta_loss(self, ball: ThreatModel, x: Tensor, x_adv: Tensor, y: Tensor, rate: float) -> Tensor:
        """Cross-entropy on ``x_adv`` of the classifier one plain step of that rate ahead, on noisy images; a scalar.

        Nothing of the classifier is changed: weights and running statistics are copies.
        """
        state = {name: buffer.clone() for name, buffer in self.classifier.named_buffers()}
        weights: dict[str, Tensor] = dict(self.classifier.named_parameters())
        logits = functional_call(self.classifier, (weights, state), self.noisy(x, ball))
        ahead = self._looked_ahead(weights, F.cross_entropy(logits, y), rate)
        return F.cross_entropy(functional_call(self.classifier, (ahead, state), x_adv), y)

    def _looked_ahead(self, weights: dict[str, Tensor], loss: Tensor, rate: float) -> dict[str, Tensor]:
        """The weights after a step along the gradient of the global batch, through which gradients flow."""
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        together = self.mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        steps = torch.split(together, [weight.numel() for weight in weights.values()])
        return {
            name: weight - rate * step.view_as(weight)
            for (name, weight), step in zip(weights.items(), steps, strict=True)
        }

    def setup(self, stage: str) -> None:
        """Check the trainer's precision, too."""
        super().setup(stage)
        remedy = "it would scale the generator's gradients, which are taken by hand; give bf16-mixed or 32-true"
        scaled = self.generator is not None and self.trainer.precision == "16-mixed"
        require(not scaled, "trainer.precision", self.trainer.precision, remedy)


def learning_rate(optimizer: LightningOptimizer) -> float:
    """Of its first group of parameters, now."""
    return float(optimizer.param_groups[0]["lr"])
