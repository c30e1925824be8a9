"""Learn2Perturb: an End-to-end Feature Perturbation Learning to Improve Adversarial Robustness (Jeddi et al. 2020).

| symbol | here | what |
| --- | --- | --- |
| W | all other parameters of ``classifier`` | the network's weights, including batch normalisation's |
| theta | ``scales`` | std of each neuron's noise, at least theta_min |
| gamma | ``gamma`` | weight of the regulariser, -sum of sqrt(theta) / tau: it rewards noise (eq. 7) |
| tau | ``harmonic_number`` | 1 + 1/2 + ... + 1/t in the t-th epoch with noise |

The paper does not define tau. The authors' code divides by the harmonic number of epoch - ``noise_delay``, which is 0
in the first epoch with noise; here t begins with 1. The paper prints gamma's term without a learning rate; here, as in
that code, the optimizer applies its learning rate.

No source that we know defines the paper's variant "Learn2Perturb-R". ``scales_learn_from`` and ``gamma: 0`` give the
possible readings: constant scales, and scales that learn from the regulariser alone or from the loss alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import SGD

from lightning_modules.base import AttackedClassifier, Batch, OptimizerSpec
from robust.attacks import PGD
from robust.errors import require
from robust.networks import injections, switch_noise

Update = Literal["two_step", "joint"]
Source = Literal["loss_and_regulariser", "regulariser", "nothing"]


class Learn2Perturb(AttackedClassifier):
    """Adversarial training of a network with noise in its layers, which alternates between weights and noise scales.

    Noise is off in the first epochs and then on, also in evaluation; attacked images join the loss later.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K) with noise: ``robust.networks.Noisy``.
        gamma: weight of the regulariser, not negative.
        theta_min: smallest scale, positive; smaller scales are set to it after each step.
        noise_delay: number of epochs without noise.
        adversarial_delay: number of epochs on clean images before attacked images join the loss.
        theta_update: step of the scales. ``"joint"`` is the paper's: one step on the loss and the regulariser, with
            both gradients at the same W and theta. ``"two_step"`` is that of the authors' code: a step on the
            regulariser, then a step on the loss, with common momentum.
        scales_learn_from: terms of the loss that the scales minimise.
        attack: attack on the predicted labels that makes the training images; by default PGD as in the authors' code.
        optimizer: optimizer of W.
        theta_optimizer: optimizer of the scales, without weight decay, which would reduce them to theta_min.
        theta_lr_scheduler: learning-rate schedule of the scales, stepped once an epoch.
        **settings: settings of :class:`AttackedClassifier`.

    Raises:
        SettingError: if a setting is out of its range, the network has no noise, or the scales have weight decay.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        gamma: float = 1e-4,
        theta_min: float = 0.01,
        noise_delay: int = 10,
        adversarial_delay: int = 20,
        theta_update: Update = "two_step",
        scales_learn_from: Source = "loss_and_regulariser",
        attack: PGD | None = None,
        optimizer: OptimizerCallable = lambda params: SGD(
            params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=3e-4
        ),
        theta_optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
        theta_lr_scheduler: LRSchedulerCallable | None = None,
        **settings: Any,
    ) -> None:
        default = PGD(steps=7, step_size=0.01, absolute=True)
        super().__init__(classifier, attack=default if attack is None else attack, optimizer=optimizer, **settings)
        name = type(classifier).__name__
        require(bool(injections(classifier)), "model.classifier", name, "wrap it in robust.networks.Noisy")
        require(gamma >= 0, "model.gamma", gamma, "give 0 (no regulariser) or more")
        require(theta_min > 0, "model.theta_min", theta_min, "give a positive scale")
        for setting, delay in (("noise_delay", noise_delay), ("adversarial_delay", adversarial_delay)):
            require(delay >= 0, f"model.{setting}", delay, "give a number of epochs, 0 or more")
        for setting, value, choices in (
            ("theta_update", theta_update, get_args(Update)),
            ("scales_learn_from", scales_learn_from, get_args(Source)),
        ):
            require(value in choices, f"model.{setting}", value, f"give one of {', '.join(choices)}")
        decays = [group.get("weight_decay", 0) for group in theta_optimizer(self.scales).param_groups]
        setting = "model.theta_optimizer.init_args.weight_decay"
        require(not any(decays), setting, max(decays), "give 0: decay would reduce the scales to theta_min")
        self.gamma, self.theta_min = gamma, theta_min
        self.noise_delay, self.adversarial_delay = noise_delay, adversarial_delay
        self.theta_update, self.scales_learn_from = theta_update, scales_learn_from
        self.theta_optimizer, self.theta_lr_scheduler = theta_optimizer, theta_lr_scheduler
        for theta in self.scales:
            theta.requires_grad_(scales_learn_from != "nothing")

    # -- phases, which depend only on the epoch, so that a resumed run is in the correct phase ---------------------

    @property
    def delays(self) -> dict[str, int]:
        """Noise and attacked images join after epochs."""
        return {"noise_delay": self.noise_delay, "adversarial_delay": self.adversarial_delay}

    @property
    def noise_is_on(self) -> bool:
        """Whether this epoch trains with noise."""
        return self.current_epoch >= self.noise_delay

    @property
    def tau(self) -> float:
        """The harmonic number of this epoch, counted from 1 in the first epoch with noise."""
        return harmonic_number(self.current_epoch - self.noise_delay + 1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Prepare the step, and turn the noise on or off."""
        super().on_train_batch_start(batch, batch_idx)
        switch_noise(self.classifier, self.noise_is_on)

    @property
    def steps_together(self) -> bool:
        """Whether the scales learn from the classifier's loss."""
        return self.scales_learn_from == "loss_and_regulariser"

    # -- the algorithm -------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Update W on the loss, and theta on the loss and the regulariser (Algorithm 1)."""
        x, y = batch
        weights, scales = self.all_optimizers()
        from_loss = self.noise_is_on and self.scales_learn_from == "loss_and_regulariser"
        from_regulariser = self.noise_is_on and self.scales_learn_from != "nothing" and self.gamma > 0
        joint = from_loss and from_regulariser and self.theta_update == "joint"

        # before the pass, since autograd would not notice a change of theta between the pass and its gradient
        if from_regulariser and not joint:
            self.descend(self.regulariser(), scales)
        loss = self.mixed_risk(x, y, adversarial=self.current_epoch >= self.adversarial_delay)
        total = loss + self.regulariser() if joint else loss
        self.descend(total, weights, *([scales] if from_loss else []))

        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log("train/mean_scale", torch.cat([theta.detach().flatten() for theta in self.scales]).mean())

    def regulariser(self) -> Tensor:
        """-gamma / tau times the sum of sqrt(theta) over all neurons (eq. 7), a scalar."""
        return self.gamma * noise_reward(self.scales, self.tau)

    def step(self, *optimizers: LightningOptimizer) -> None:
        """Step the optimizers, and set scales below theta_min to theta_min."""
        super().step(*optimizers)
        with torch.no_grad():
            for theta in self.scales:
                theta.clamp_(min=self.theta_min)

    # -- parameters W and theta ----------------------------------------------------------------------------------

    @property
    def scales(self) -> list[nn.Parameter]:
        """The parameters theta, one tensor (1, C, H, W) for each noisy layer."""
        return [injection.theta for injection in injections(self.classifier)]

    @property
    def partially_used(self) -> list[str]:
        """The scales, which epochs without noise do not use; DDP ignores scales that need no gradient."""
        return [] if self.scales_learn_from == "nothing" else ["the noise"]

    def optimizer_specs(self) -> list[OptimizerSpec]:
        """The entry of W, then that of theta."""
        scales = {id(theta) for theta in self.scales}
        weights = (weight for weight in self.classifier.parameters() if id(weight) not in scales)
        return [
            OptimizerSpec(weights, self.optimizer, self.lr_scheduler),
            OptimizerSpec(self.scales, self.theta_optimizer, self.theta_lr_scheduler),
        ]

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save whether the noise is on, since an evaluation of the checkpoint has no epoch."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["noise"] = injections(self.classifier)[0].enabled

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Turn the noise on or off as in the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        switch_noise(self.classifier, checkpoint["noise"])


def harmonic_number(t: int) -> float:
    """1 + 1/2 + ... + 1/t."""
    return sum(1 / i for i in range(1, t + 1))


def noise_reward(scales: Iterable[Tensor], tau: float) -> Tensor:
    """The sum of g(theta) = -sqrt(theta) / tau over all entries of positive scales (eq. 7), a scalar."""
    return -torch.stack([theta.sqrt().sum() for theta in scales]).sum() / tau
