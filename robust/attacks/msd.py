"""Multi steepest descent: one ascent that chooses, step by step, the norm that raises the loss most."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robust.attacks._checked import attacking, input_gradient, judge
from robust.errors import require
from robust.losses import cross_entropy
from robust.modes import MODES, Mode
from robust.progress import tracked
from robust.threat_models import Norm, ThreatModel


class MultiSteepestDescent:
    """Ascent of the cross-entropy in the union of a linf, an l2 and an l1 ball, from the image itself.

    Each step takes one gradient, from it a step of PGD in every norm, each projected on its ball, and goes on, for
    each example, from that of highest loss. Source: Maini, Wong, Kolter 2020, Algorithm 1.

    Args:
        steps: number of ascent steps.
        step_size_linf: size of a step in linf, in pixel units.
        step_size_l2: in l2.
        step_size_l1: in l1.
        sparsity: fraction of the pixels that a step in l1 moves.
        mode: the network's mode meanwhile; see :class:`robust.attacks.PGD`.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        steps: int = 20,
        step_size_linf: float = 1 / 255,
        step_size_l2: float = 25 / 255,
        step_size_l1: float = 1.0,
        sparsity: float = 0.01,
        mode: Mode = "eval",
    ) -> None:
        require(steps >= 1, "steps", steps, "give at least 1")
        self.step_sizes: dict[Norm, float] = {"linf": step_size_linf, "l2": step_size_l2, "l1": step_size_l1}
        for norm, size in self.step_sizes.items():
            require(0 < size < float("inf"), f"step_size_{norm}", size, "give a positive, finite size, in pixel units")
        require(0 < sparsity <= 1, "sparsity", sparsity, "give a fraction of the pixels in (0, 1]")
        require(mode in MODES, "mode", mode, f"give one of {', '.join(MODES)}")
        self.steps = steps
        self.sparsity = sparsity
        self.mode: Mode = mode

    def __call__(self, network: nn.Module, balls: Mapping[Norm, ThreatModel], x: Tensor, y: Tensor) -> Tensor:
        """Perturbed images (B, C, H, W), each in one of the balls: the last iterate.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            balls: around ``x``, by norm.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
        """
        with attacking(network, self.mode, x, y) as (checked, x, y):
            x_adv = x
            for _ in tracked(range(self.steps)):
                gradient, _, _ = input_gradient(checked, cross_entropy, x_adv, y, num_samples=1)
                tried = torch.stack([self._step(norm, ball, gradient, x_adv, x) for norm, ball in balls.items()])
                losses = torch.stack([judge(checked, cross_entropy, images, y, num_samples=1)[0] for images in tried])
                x_adv = tried[losses.argmax(0), torch.arange(len(x), device=x.device)]
            return x_adv

    def _step(self, norm: Norm, ball: ThreatModel, gradient: Tensor, x_adv: Tensor, x: Tensor) -> Tensor:
        step = self.step_sizes[norm] * ball.steepest_direction(gradient, self.sparsity, x_adv)
        return ball.project(x_adv + step, x)
