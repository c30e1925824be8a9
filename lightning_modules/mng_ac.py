"""Learning to Generate Noise for Multi-Attack Robustness (Madaan, Shin, Hwang 2021): MNG-AC.

| symbol | here | what |
| --- | --- | --- |
| A, B(x, epsilon) | ``attacks``, ``balls`` | one norm is drawn for each batch (SAT) |
| g_phi | ``generator`` | maps an image to noise, fitted to the budget of the batch's norm (MNG) |
| theta' | ``_lookahead_weights`` | the classifier's weights after a gradient step on the noisy images |
| beta | ``consistency`` | weight of the Jensen-Shannon divergence of clean, noisy and attacked predictions (AC) |

The generator minimises the loss of theta' on the attacked images. Its gradient flows through theta', by the mixed
second derivative of the loss on the noisy images. docs/mng_ac.md lists the choices made where the paper and the
published code differ or say nothing.
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
    """Training on one norm per batch, with a meta-learned noise generator and consistent predictions.

    With ``consistency`` 0 this is stochastic adversarial training (SAT). Without a generator the noise is standard
    normal, fitted in the same way (SAT + AC).

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        generator: network from images to noise of their shape; none for normal noise.
        consistency: weight of the divergence, not negative; 12 in the published code.
        linf_fit: fit of the noise in linf, as in :func:`robust.noise_fitting.fit_linf`.
        attack_linf: attack in linf; by default that of the published code for CIFAR-10.
        attack_l2: attack in l2; the default is from the same code.
        attack_l1: attack in l1; the default is from the same code.
        generator_optimizer: optimizer of the generator.
        generator_every: interval in batches at which the generator learns, from the first batch of an epoch on; 1 in
            the paper.
        **settings: settings of :class:`GeneratorClassifier` and :class:`MultiNormClassifier`; the lookahead step has
            the learning rate of ``optimizer``, and ``gradient_clip`` applies to each network separately.

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
        generator_every: int = 1,
        **settings: Any,
    ) -> None:
        require(consistency >= 0, "model.consistency", consistency, "give a weight of 0 or more")
        remedy = "its noise is used only by the consistency; give a positive model.consistency or generator null"
        require(generator is None or consistency > 0, "model.generator", type(generator).__name__, remedy)
        require(linf_fit in LINF_FITS, "model.linf_fit", linf_fit, f"give one of {', '.join(LINF_FITS)}")
        require(generator_every >= 1, "model.generator_every", generator_every, "give a number of batches, at least 1")
        super().__init__(
            classifier=classifier, generator=generator, generator_optimizer=generator_optimizer, **settings
        )
        self.consistency, self.linf_fit, self.generator_every = consistency, linf_fit, generator_every
        self.attacks = attacks_by_norm(attack_linf, attack_l2, attack_l1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: attack in the batch's norm, update the generator, then the classifier."""
        x, y = batch
        norm = list(self.attacks)[shared_choice(len(self.attacks))]
        ball = self.balls(self.ramp)[norm]
        x_adv = self.attacks[norm](self.classifier, ball, x, y)
        if self.generator is not None and batch_idx % self.generator_every == 0:
            self._train_generator(self.generator, ball, x, x_adv, y)
        if self.consistency == 0:
            loss = F.cross_entropy(self(x_adv), y)
        else:
            with torch.no_grad():
                x_noisy = self.noisy(x, ball)
            # three passes in the order of the published code, so that batch normalisation does not mix the images
            clean, noisy, attacked = self(x), self(x_noisy), self(x_adv)
            divergence = jensen_shannon(clean, noisy, attacked)
            loss = (F.cross_entropy(attacked, y, reduction="none") + self.consistency * divergence).mean()
            self.log("train/divergence", divergence.detach().mean(), sync_dist=True)
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)

    def noisy(self, x: Tensor, ball: ThreatModel) -> Tensor:
        """Images (B, C, H, W) plus the generator's or normal noise, fitted to the ball."""
        noise = randn_like(x) if self.generator is None else self.generator(x)
        return ball.fit_noise(x, noise.to(x.dtype), self.linf_fit)  # autocast changes the data type of the noise

    def _train_generator(self, generator: nn.Module, ball: ThreatModel, x: Tensor, x_adv: Tensor, y: Tensor) -> None:
        """Update the generator to reduce the lookahead classifier's loss on attacked images."""
        optimizer, generator_optimizer = self.all_optimizers()
        weights = [weight for weight in generator.parameters() if weight.requires_grad]
        with torch.autocast(x.device.type, enabled=False):  # second derivatives are too small for half precision
            loss = self.meta_loss(ball, x, x_adv, y, learning_rate(optimizer))
            self.check_loss(loss)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        # autograd.grad bypasses the hooks by which DDP averages gradients
        means = [self.mean_over_ranks(gradient) for gradient in gradients]
        for weight, gradient in zip(weights, means, strict=True):
            weight.grad = gradient
        size = torch.stack([gradient.norm() for gradient in means]).norm()
        self.step(generator_optimizer)
        generator_optimizer.zero_grad()
        self.log_dict({"train/meta_loss": loss.detach(), "train/generator_gradient": size}, sync_dist=True)

    def meta_loss(self, ball: ThreatModel, x: Tensor, x_adv: Tensor, y: Tensor, rate: float) -> Tensor:
        """Cross-entropy on ``x_adv`` of the classifier after one gradient step on noisy images, a scalar.

        The step has the learning rate ``rate``. The classifier itself does not change: weights and running statistics
        are copies.
        """
        state = {name: buffer.clone() for name, buffer in self.classifier.named_buffers()}
        weights: dict[str, Tensor] = dict(self.classifier.named_parameters())
        logits = functional_call(self.classifier, (weights, state), self.noisy(x, ball))
        lookahead = self._lookahead_weights(weights, F.cross_entropy(logits, y), rate)
        return F.cross_entropy(functional_call(self.classifier, (lookahead, state), x_adv), y)

    def _lookahead_weights(self, weights: dict[str, Tensor], loss: Tensor, rate: float) -> dict[str, Tensor]:
        """The weights after a step along the gradient of the global batch, differentiable to that gradient."""
        trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
        inputs = list(trained.values())
        gradients = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
        mean = self.mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        steps = torch.split(mean, [weight.numel() for weight in inputs])
        return weights | {
            name: weight - rate * step.view_as(weight)
            for (name, weight), step in zip(trained.items(), steps, strict=True)
        }

    def setup(self, stage: str) -> None:
        """Check the run, that the networks can learn, and that the trainer's precision does not scale gradients."""
        super().setup(stage)
        if stage == "fit" and self.generator is not None:
            self.require_trainable()
        remedy = "it would scale the generator's gradients, which autograd.grad computes; give bf16-mixed or 32-true"
        scaled = self.generator is not None and self.trainer.precision == "16-mixed"
        require(not scaled, "trainer.precision", self.trainer.precision, remedy)


def learning_rate(optimizer: LightningOptimizer) -> float:
    """Current learning rate of the optimizer's first parameter group."""
    return float(optimizer.param_groups[0]["lr"])
