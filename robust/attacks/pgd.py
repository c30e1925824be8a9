"""Projected gradient descent (Madry et al. 2018) in per-pixel boxes and linf balls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.errors import require
from robust.threat_models import PixelBox


class PGD:
    """Signed gradient ascent on the cross-entropy, each pixel's step in proportion to its budget.

    Gradients are taken with respect to the input only; the network runs in the mode it is in. Works under
    ``torch.no_grad`` and ``torch.inference_mode``.

    Args:
        steps: number of ascent steps.
        step_size: step over the pixel's budget; by default 2.5 / steps, so that every corner can be reached.
        restarts: independent uniform starts in the box; an example counts as broken if any of them breaks it.

    Raises:
        SettingError: if ``steps`` or ``restarts`` is below 1 or ``step_size`` not positive.
    """

    def __init__(self, steps: int = 40, step_size: float | None = None, restarts: int = 1) -> None:
        require(steps >= 1, "steps", steps, "give at least 1")
        require(restarts >= 1, "restarts", restarts, "give at least 1")
        self.steps = steps
        self.step_size = 2.5 / steps if step_size is None else step_size
        require(self.step_size > 0, "step_size", step_size, "give a positive share of the budget")
        self.restarts = restarts

    def __call__(self, network: nn.Module, threat_model: PixelBox, x: Tensor, y: Tensor) -> Tensor:
        """The strongest perturbed images found, (B, C, H, W): misclassified if possible, else of highest loss.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            threat_model: where to search.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
        """
        with torch.inference_mode(False), torch.enable_grad():
            x, y = x.clone(), y.clone()  # tensors of inference mode cannot enter a graph
            threat_model = PixelBox(threat_model.budgets.detach().clone())
            best, best_score = x, self._score(network, x, y)
            for _ in range(self.restarts):
                x_adv = self._ascend(network, threat_model, x, y)
                score = self._score(network, x_adv, y)
                better = score > best_score
                best = torch.where(better[:, None, None, None], x_adv, best)
                best_score = torch.where(better, score, best_score)
            return best

    def _ascend(self, network: nn.Module, threat_model: PixelBox, x: Tensor, y: Tensor) -> Tensor:
        x_adv = threat_model.sample(x)
        for _ in range(self.steps):
            x_adv = x_adv.detach().requires_grad_()
            loss = F.cross_entropy(network(x_adv), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = threat_model.project(x_adv.detach() + self.step_size * threat_model.budgets * gradient.sign(), x)
        return x_adv

    @staticmethod
    @torch.no_grad()
    def _score(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Highest other logit minus the label's, (B,): positive where misclassified."""
        logits = network(x)
        label = logits.gather(1, y[:, None]).squeeze(1)
        score: Tensor = logits.scatter(1, y[:, None], -torch.inf).amax(1) - label
        return score
