"""A General Framework for Defining and Optimizing Robustness (Tibo, Jaeger, Larsen 2022): training for R2.

| symbol | here | what |
| --- | --- | --- |
| f, g | ``classifier``, ``generator`` | trained alternately on independently shuffled batches (Algorithm 1) |
| epsilon* | ``distance`` | l2 distance of g(x) to x; a constant in the classifier's step |
| CE(f(x), f(x*)) | ``disagreement`` | differentiable substitute for the indicator of equal classes (Sec. 3) |
| lambda | ``score_weight`` | weight of the robustness term (eq. 7, 12) |

The term of eq. 12 is a score, so the loss *subtracts* it: minimising -epsilon* / CE makes the predictions at x and x*
agree and moves the boundary beyond x*. The term has no lower bound as CE goes to 0, hence the floor.
``form="inverse"`` has the same minimum and is bounded: it adds CE / epsilon*. The hinge in g's loss is at most 1, so
with the printed weight of 1 no flip farther than sqrt(2) reduces the loss, and g becomes the identity: hence
``adversarial_weight``. Watch ``train/flip_rate`` and ``train/distance``: if they are 0, the term is only noise.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam

from lightning_modules.base import Batch, GeneratorClassifier
from robust.errors import require
from robust.losses import probability_margin, soft_cross_entropy
from robust.modes import attack_mode

Form = Literal["literal", "inverse"]


class RobustnessScoreTraining(GeneratorClassifier):
    """Trains a classifier for a large R2, its mean distance to the decision boundary.

    A generator makes the examples beyond the boundary. There are three phases of epochs: the classifier alone on the
    cross-entropy, the generator alone, then both alternately.

    Args:
        classifier: f, network from images (B, C, H, W) to logits (B, K).
        generator: g, network from images to images of the same shape in [0, 1].
        epsilon: size of the threat model in evaluation, in pixel units; training does not use it.
        score_weight: lambda, not negative; choose it on validation data.
        form: robustness term: ``"literal"`` for -epsilon* / CE, or ``"inverse"`` for CE / epsilon*.
        adversarial_weight: weight of the hinge in the generator's loss; 1 in the paper.
        disagreement_floor: lower limit of CE in the literal term.
        distance_floor: lower limit of epsilon* in the inverse term.
        grad_through_reference: whether the term's gradient also flows through f(x); f could then reduce CE by making
            its predictions less confident.
        only_flipped: whether to drop the term for images whose x* does not change the class.
        warmup_epochs: number of epochs of the classifier alone.
        generator_epochs: number of epochs of the generator alone, after the warm-up.
        optimizer: optimizer of the classifier.
        generator_optimizer: optimizer of the generator.
        gradient_clip: largest gradient norm of each network.
        **settings: settings of :class:`GeneratorClassifier`.

    Raises:
        SettingError: if a setting is out of its range, or the networks do not fit the data.
    """

    generator: nn.Module
    ramped = False
    training_batches = 2

    def __init__(
        self,
        classifier: nn.Module,
        generator: nn.Module,
        *,
        epsilon: float = 0.1,
        score_weight: float = 0.02,
        form: Form = "literal",
        adversarial_weight: float = 20.0,
        disagreement_floor: float = 0.05,
        distance_floor: float = 0.1,
        grad_through_reference: bool = False,
        only_flipped: bool = False,
        warmup_epochs: int = 1,
        generator_epochs: int = 1,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        generator_optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        gradient_clip: float | None = 5.0,
        **settings: Any,
    ) -> None:
        require(score_weight >= 0, "model.score_weight", score_weight, "give a weight of 0 or more")
        require(form in ("literal", "inverse"), "model.form", form, "give literal or inverse")
        require(adversarial_weight > 0, "model.adversarial_weight", adversarial_weight, "give a positive weight")
        for name, floor in (("disagreement", disagreement_floor), ("distance", distance_floor)):
            require(floor > 0, f"model.{name}_floor", floor, "give a positive floor, since the term divides by it")
        for name, epochs in (("warmup", warmup_epochs), ("generator", generator_epochs)):
            require(epochs >= 0, f"model.{name}_epochs", epochs, "give 0 or more")
        super().__init__(
            classifier=classifier,
            generator=generator,
            epsilon=epsilon,
            optimizer=optimizer,
            generator_optimizer=generator_optimizer,
            gradient_clip=gradient_clip,
            **settings,
        )
        self.score_weight, self.form, self.adversarial_weight = score_weight, form, adversarial_weight
        self.disagreement_floor, self.distance_floor = disagreement_floor, distance_floor
        self.grad_through_reference, self.only_flipped = grad_through_reference, only_flipped
        self.warmup_epochs, self.generator_epochs = warmup_epochs, generator_epochs

    @property
    def delays(self) -> dict[str, int]:
        """The score joins the classifier's loss after the epochs of the classifier and of the generator alone."""
        return {"warmup_epochs + model.generator_epochs": self.warmup_epochs + self.generator_epochs}

    @property
    def partially_used(self) -> list[str]:
        """Both networks, since some steps use only one of them."""
        return ["classifier", "generator"]

    def setup(self, stage: str) -> None:
        """Check the run, and that both networks can learn."""
        super().setup(stage)
        if stage == "fit":
            self.require_trainable()

    def training_step(self, batch: list[Batch], batch_idx: int) -> None:
        """Algorithm 1: update f on one batch, then g on another."""
        (x, y), (z, _) = batch
        f_optimizer, g_optimizer = self.all_optimizers()
        first = self.warmup_epochs
        if self.current_epoch < first:
            self._classifier_step(f_optimizer, F.cross_entropy(self(x), y))
        elif self.current_epoch < first + self.generator_epochs:
            self._generator_step(g_optimizer, z)
        else:
            self._classifier_step(f_optimizer, self.classifier_loss(x, y))
            self._generator_step(g_optimizer, z)

    def _classifier_step(self, optimizer: LightningOptimizer, loss: Tensor) -> None:
        self.descend(loss, optimizer)
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)

    def _generator_step(self, optimizer: LightningOptimizer, z: Tensor) -> None:
        with self.toggled_optimizer(optimizer), attack_mode(self.classifier, "eval"), torch.enable_grad():
            loss = self.generator_loss(z)
            self.descend(loss, optimizer)
        self.log("train/generator_loss", loss.detach(), sync_dist=True)

    def classifier_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy plus lambda times the literal or the inverse term, a scalar."""
        with attack_mode(self.generator, "eval"):
            x_star = self.generator(x)
            distance = torch.linalg.vector_norm((x_star - x).flatten(1), dim=1)
        logits, logits_star = self(x), self(x_star)
        reference = logits if self.grad_through_reference else logits.detach()
        disagreement = soft_cross_entropy(logits_star, reference)
        if self.form == "literal":
            term = -distance / disagreement.clamp(min=self.disagreement_floor)
        else:
            term = disagreement / distance.clamp(min=self.distance_floor)
        self.log_epoch_mean("train/disagreement", disagreement)
        if self.only_flipped:
            with attack_mode(self.classifier, "eval"):
                term = term * (self(x_star).argmax(1) != self(x).argmax(1))
        loss: Tensor = F.cross_entropy(logits, y) + self.score_weight * term.mean()
        return loss

    def generator_loss(self, z: Tensor) -> Tensor:
        """Half the squared distance, plus a hinge on the margin of the class that f predicts (Sec. 4.1), a scalar."""
        with torch.no_grad():
            predicted = self(z).argmax(1)
        z_star = self.generator(z)
        distance = 0.5 * (z_star - z).flatten(1).square().sum(1)
        logits = self(z_star)
        hinge = probability_margin(logits, predicted).clamp(min=0)
        self.log_epoch_mean("train/flip_rate", (logits.argmax(1) != predicted).float())  # here f is in evaluation mode
        self.log_epoch_mean("train/distance", (z_star - z).flatten(1).norm(dim=1))
        loss: Tensor = (distance + self.adversarial_weight * hinge).mean()
        return loss
