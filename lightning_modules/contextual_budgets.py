"""Learning Contextual Perturbation Budgets for Training Robust Neural Networks (J. Xu, Shi, Zhang, Yi, Hsieh, L. Wang).

| symbol | here | what |
| --- | --- | --- |
| f_w | ``classifier`` | the network to be certified |
| g_theta | ``generator`` | maps an image to one number in (0, 1) for each pixel |
| epsilon_0 | ``epsilon`` | the uniform budget of the same robustness volume, V_0 = epsilon_0^n (eq. 2) |
| alpha with a bar below, above | ``alpha_low``, ``alpha_high`` | range of budgets over epsilon_0 (eq. 5) |
| L_rob | ``verifier.cross_entropy`` | upper bound of the cross-entropy over the box (Sec. 3.4) |

Classifier and generator minimise the same loss; only the volume constraint (eq. 4) keeps the budgets from shrinking.
The paper does not specify the generator's optimizer (here a separate one with the same learning rate), whether there is
a natural term (``natural_weight``), or the training before the ramp (here natural training).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Adam

from lightning_modules.base import (
    Batch,
    GeneratorClassifier,
    blank_images,
    check_repeatable,
    run_blank,
    statistics_of,
)
from robust.bounds import Auto, Verifier, clean_statistics, in_place_of_running, interval_regulariser
from robust.bounds.clean_statistics import normalised_by_batch
from robust.budgets import check_budget_range, relative_budgets
from robust.certified_losses import CertifiedLoss
from robust.errors import SettingError, require
from robust.modes import attack_mode
from robust.networks import initialise_for_intervals
from robust.passes import uncounted
from robust.threat_models import LinfBall, PixelBox, ThreatModel


class ContextualBudgets(GeneratorClassifier):
    """Certified training against per-pixel budgets that a generator predicts for each image.

    Without a generator the budgets are uniform; this is the paper's baseline, CROWN-IBP training with loss fusion.
    A large epsilon_0 needs ``alpha_low_start``. The generator then first learns a few pixels with tiny budgets, and
    later many with larger ones: epsilon is full after half of the ramp, then the smallest budget moves geometrically to
    ``alpha_low``. By default epsilon rises over the whole ramp. Evaluations always use ``alpha_low`` and the full
    epsilon, so that all epochs are comparable. ``natural_weight`` is 0.5 in CROWN-IBP's recipe, and absent in the
    recipe with loss fusion. If the classifier has batch normalisation, each step makes one clean pass, and the bounds
    use its statistics, too (Shi et al. 2021); evaluations use the running statistics. ``interval_weight`` and
    ``interval_initialisation`` are from that paper, too; a positive weight costs another pass of intervals.
    A ``robust_loss`` is one of :mod:`robust.certified_losses`, for networks that are certified by tighter bounds than
    intervals.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        generator: network from images to outputs in (0, 1) of the same shape; none for uniform budgets.
        verifier: verifier that bounds the training loss; ``auto`` is ``FeedForwardVerifier`` if it can bound the
            classifier, else ``LirpaVerifier``.
        robust_loss: loss in place of L_rob, between L_rob and the loss under an attack; null for L_rob.
        epsilon: epsilon_0 in (0, 1], the target of the epsilon schedule.
        alpha_low: smallest budget over epsilon_0, in (0, 1].
        alpha_high: largest budget over epsilon_0, at least 1; budgets never exceed 1.
        alpha_low_start: ``alpha_low`` in the first half of the ramp, if it moves.
        natural_weight: weight kappa of the natural loss at the end of the ramp; it is 1 at the start. Null for no
            natural loss.
        interval_weight: weight of the intervals' regularisers at the ramp's start; 0 at full epsilon.
        interval_initialisation: whether to draw initial weights with which intervals keep their width.
        gradient_clip: largest gradient norm of both networks together.
        optimizer: optimizer of the classifier.
        generator_optimizer: optimizer of the generator.
        **settings: settings of :class:`GeneratorClassifier`.

    Raises:
        SettingError: if no budgets of that volume and range exist, or the networks do not fit the data.
    """

    def __init__(
        self,
        classifier: nn.Module,
        generator: nn.Module | None = None,
        *,
        verifier: Verifier | Auto = "auto",
        robust_loss: CertifiedLoss | None = None,
        epsilon: float = 0.4,
        alpha_low: float = 0.5,
        alpha_high: float = 2.0,
        alpha_low_start: float | None = None,
        natural_weight: float | None = None,
        interval_weight: float = 0.0,
        interval_initialisation: bool = False,
        gradient_clip: float | None = 8.0,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=5e-4),
        generator_optimizer: OptimizerCallable = lambda params: Adam(params, lr=5e-4),
        **settings: Any,
    ) -> None:
        check_budget_range(epsilon, alpha_low, alpha_high)
        fits = alpha_low_start is None or 0 < alpha_low_start <= 1
        remedy = "give a value in (0, 1]: budgets over epsilon_0 have the geometric mean 1"
        require(fits, "model.alpha_low_start", alpha_low_start, remedy)
        learned = generator is not None or alpha_low_start is None
        require(learned, "model.alpha_low_start", alpha_low_start, "leave it out: uniform budgets have no range")
        require(0 <= (natural_weight or 0) <= 1, "model.natural_weight", natural_weight, "give a weight in [0, 1]")
        require(interval_weight >= 0, "model.interval_weight", interval_weight, "give a weight of 0 or above")
        if interval_initialisation:
            initialise_for_intervals(classifier)
        super().__init__(
            classifier=classifier,
            generator=generator,
            epsilon=epsilon,
            gradient_clip=gradient_clip,
            optimizer=optimizer,
            generator_optimizer=generator_optimizer,
            **settings,
        )
        if not isinstance(verifier, str):
            self.verifier = verifier
        self.robust_loss = robust_loss
        self.alpha_low, self.alpha_high, self.natural_weight = alpha_low, alpha_high, natural_weight
        self.alpha_low_start, self.interval_weight = alpha_low_start, interval_weight
        self.needs_ramp = alpha_low_start is not None or interval_weight > 0
        self._drawn_and_given = interval_initialisation and settings.get("weights") is not None

    def setup(self, stage: str) -> None:
        """Check the run, and that the initial weights of a training have one source."""
        remedy = "model.weights gives the initial weights; leave one of the two out"
        require(stage != "fit" or not self._drawn_and_given, "model.interval_initialisation", True, remedy)
        super().setup(stage)

    @property
    def current_epsilon(self) -> float:
        """Epsilon_0 in training, in pixel units; full after half of the ramp if the range also moves."""
        return super().current_epsilon if self.alpha_low_start is None else min(2 * self.ramp, 1.0) * self.epsilon

    @property
    def current_alpha_low(self) -> float:
        """Smallest budget over epsilon_0 in training."""
        start = self.alpha_low if self.alpha_low_start is None else self.alpha_low_start
        return start * math.pow(self.alpha_low / start, max(2 * self.ramp - 1, 0.0))

    def threat_model(self, x: Tensor, epsilon: float, alpha_low: float | None = None) -> PixelBox:
        """Budgets of volume epsilon^n around ``x`` (B, C, H, W): learned, or uniform without a generator.

        ``alpha_low`` is the smallest budget over epsilon; by default that of evaluations.
        """
        if self.generator is None:
            return LinfBall(epsilon)
        alpha_low = self.alpha_low if alpha_low is None else alpha_low
        return PixelBox(epsilon * relative_budgets(self.generator(x), epsilon, alpha_low, self.alpha_high))

    def threat_models(self, x: Tensor, epsilon: float) -> dict[str, ThreatModel]:
        """The model's own learned budgets, and the linf ball of the same volume."""
        own: dict[str, ThreatModel] = {} if self.generator is None else {"own_budgets": self.threat_model(x, epsilon)}
        return {**own, **super().threat_models(x, epsilon)}

    @property
    def steps_together(self) -> bool:
        """Whether there is a generator, which learns from the classifier's loss."""
        return self.generator is not None

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise (1 - kappa) L_rob + kappa L_nat over classifier and generator together (Sec. 3.2)."""
        x, y = batch
        if self.ramp == 0:  # natural training before the ramp
            loss = F.cross_entropy(self(x), y)
            self.descend(loss, self.all_optimizers()[0])
        else:
            loss = self._robust_loss(x, y)
            self.descend(loss, *self.all_optimizers())
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        if self.alpha_low_start is not None:
            self.log("train/alpha_low", self.current_alpha_low)

    def _robust_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """(1 - kappa) L_rob + kappa L_nat + lambda (L_tightness + L_relu), with one clean pass if it is needed."""
        budgets = self.threat_model(x, self.current_epsilon, self.current_alpha_low)
        kappa = 0.0 if self.natural_weight is None else 1 - self.ramp * (1 - self.natural_weight)
        natural = x.new_zeros(())
        with clean_statistics(self.classifier, statistics_of) as statistics:
            if self.natural_weight is not None or normalised_by_batch(self.classifier):
                natural = F.cross_entropy(self(x), y)
        with in_place_of_running(statistics):
            loss = self._bounded(budgets, x, y).mean()
            loss = loss if kappa == 0 else (1 - kappa) * loss + kappa * natural
            weight = self.interval_weight * (1 - self.current_epsilon / self.epsilon)
            if weight == 0:
                return loss
            return loss + weight * interval_regulariser(self.classifier, budgets.interval(x), mean=self.mean_over_ranks)

    def _bounded(self, budgets: PixelBox, x: Tensor, y: Tensor) -> Tensor:
        """L_rob or ``robust_loss`` of each example, (B,)."""
        if self.robust_loss is None:
            return self.verifier.cross_entropy(self.classifier, budgets.interval(x), y, crown_weight=1 - self.ramp)
        return self.robust_loss(self.classifier, self.verifier, budgets, x, y, crown_weight=1 - self.ramp)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the range of budgets, which other models need if they use the generator."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["budget_range"] = {"alpha_low": self.alpha_low, "alpha_high": self.alpha_high}

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Check the networks, that the verifier can bound the classifier, and the loss of each example."""
        super().check_shapes(image_shape, num_classes)
        blank = blank_images(self.classifier, 1, image_shape)
        y = torch.zeros(1, dtype=torch.long, device=blank.device)
        with torch.no_grad():
            self.verifier.cross_entropy(self.classifier, LinfBall(self.epsilon).interval(blank), y)
        if self.generator is not None:
            check_repeatable("model.generator", self.generator, image_shape, "outputs", "switch its noise off there")
            outputs = run_blank("model.generator", self.generator, image_shape)
            relative_budgets(outputs, self.epsilon, self.alpha_low, self.alpha_high)
        if self.robust_loss is not None:
            self._check_robust_loss(self.robust_loss, blank_images(self.classifier, 2, image_shape))

    def _check_robust_loss(self, loss: CertifiedLoss, x: Tensor) -> None:
        """Check, on two blank images, that the loss takes its arguments and is one of each example."""
        name, y = type(loss).__name__, torch.zeros(len(x), dtype=torch.long, device=x.device)
        devices = [x.device] if x.is_cuda else []
        try:
            with attack_mode(self.classifier, "eval"), uncounted(), torch.random.fork_rng(devices):
                losses: Any = loss(self.classifier, self.verifier, LinfBall(self.epsilon), x, y, crown_weight=1.0)
        except TypeError as error:
            remedy = f"it is called as loss(network, verifier, budgets, x, y, crown_weight=...), which fails: {error}"
            raise SettingError("model.robust_loss", name, remedy) from error
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        remedy = f"its output for 2 images is {shape}; give one loss for each example, of shape (B,)"
        require(shape == (2,), "model.robust_loss", name, remedy)
