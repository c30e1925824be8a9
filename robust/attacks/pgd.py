"""Projected gradient ascent (Madry et al. 2018) and its single step (Goodfellow et al. 2015) in every threat model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robust.attacks._checked import Checked, attacking, check_loss, input_gradient, judge, named_loss
from robust.errors import require
from robust.losses import Loss
from robust.modes import MODES, Mode
from robust.progress import tracked
from robust.random import part, randn_like
from robust.threat_models import ThreatModel

Start = Literal["random", "gaussian", "clean"]


class PGD:
    """Steepest ascent of a loss in the threat model's norm, each step projected.

    The step is the gradient's sign in linf and per-pixel boxes, the gradient over its norm in l2, and equal parts to
    the largest entries in l1, where pixels that it would move out of [0, 1] are left out. Gradients are taken with
    respect to the input only. Works under ``torch.no_grad`` and ``torch.inference_mode``.

    >>> from robust.threat_models import L2Ball
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x, y = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2), torch.tensor([0])
    >>> x_adv = PGD(steps=10)(network, L2Ball(0.5), x, y)  # the boundary is at 1/2 / sqrt(2), about 0.354
    >>> network(x_adv).argmax(1), L2Ball(0.5).contains(x_adv, x)
    (tensor([1]), tensor([True]))

    Args:
        steps: number of ascent steps.
        step_size: size of a step as a fraction of the radius, or of each pixel's budget; by default 2.5 / steps, so
            that every corner can be reached.
        absolute: ``step_size`` is in pixel units instead, as papers print it: ``step_size=2 / 255, absolute=True``.
        start: ``"random"`` in the threat model, ``"gaussian"`` noise of std 0.001 (TRADES), or ``"clean"``.
        restarts: number of independent starts; an example counts as broken if any of them, or no perturbation at all,
            breaks it. For networks with noise, the image of highest loss is the result.
        loss: the loss to ascend: ``"cross_entropy"``, ``"margin"``, ``"dlr"`` or a function (logits, labels) -> (B,).
        early_stop: leave out examples as soon as they are misclassified. Saves time and changes no verdict where the
            network treats the examples of a batch independently, but the images found are barely misclassified.
            Networks with noise are attacked to the end: they misclassify one of many images by chance.
        num_samples: gradients are means over so many passes, for networks that draw random numbers (EOT).
        sparsity: fraction of the pixels that a step in l1 moves.
        mode: the network's mode meanwhile: ``"eval"``, ``"keep"`` (its own), or ``"frozen"``, its own without an
            update of batch normalisation's running statistics. Restored afterwards.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        steps: int = 40,
        step_size: float | None = None,
        absolute: bool = False,
        start: Start = "random",
        restarts: int = 1,
        loss: Literal["cross_entropy", "margin", "dlr"] | Loss = "cross_entropy",
        early_stop: bool = False,
        num_samples: int = 1,
        sparsity: float = 0.01,
        mode: Mode = "eval",
    ) -> None:
        for name, count in (("steps", steps), ("restarts", restarts), ("num_samples", num_samples)):
            require(count >= 1, name, count, "give at least 1")
        fits = step_size is None or 0 < step_size < float("inf")
        require(fits, "step_size", step_size, "give a positive, finite fraction of the radius")
        require(step_size is not None or not absolute, "absolute", absolute, "give the step_size in pixel units too")
        require(start in ("random", "gaussian", "clean"), "start", start, "give random, gaussian or clean")
        require(0 < sparsity <= 1, "sparsity", sparsity, "give a fraction of the pixels in (0, 1]")
        require(mode in MODES, "mode", mode, f"give one of {', '.join(MODES)}")
        self.steps = steps
        self.step_size = 2.5 / steps if step_size is None else step_size
        self.absolute = absolute
        self.start = start
        self.restarts = restarts
        self.loss = named_loss(loss)
        self.early_stop = early_stop
        self.num_samples = num_samples
        self.sparsity = sparsity
        self.mode: Mode = mode

    def __call__(
        self, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor, loss: Loss | None = None
    ) -> Tensor:
        """Perturbed images (B, C, H, W): the last iterate of a single run, else the strongest found.

        With restarts or early stopping that is a misclassified image if one was seen, else one of highest loss.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            threat_model: set of perturbed images to search.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
            loss: loss to ascend instead of the constructor's; it may hold tensors of this batch:
                ``lambda logits, y: kl(logits, clean_logits)``.

        Raises:
            SettingError: if the loss is not one number per example, or given here with early stopping; if images,
                labels, logits or weights are not as said.
            NonFiniteLogitsError: if logits are NaN or infinite.
            GradientError: if gradients are, or the first is zero for all examples.
        """
        require(loss is None or not self.early_stop, "early_stop", True, "turn it off: the loss is of whole batches")
        loss = loss or self.loss
        with attacking(network, self.mode, x, y, self.num_samples) as (checked, x, y):
            if self.restarts == 1 and not (self.early_stop and checked.certain):
                return self.ascend(checked, threat_model, x, y, loss)
            return self._strongest(checked, threat_model, x, y, loss)

    def check(self, network: nn.Module, threat_model: ThreatModel, x: Tensor) -> None:
        """Check, by a pass of images ``x`` (B, C, H, W), that the network has enough classes for the loss.

        Raises:
            SettingError: if it has not.
        """
        check_loss(self.loss, network, x)

    def _strongest(self, network: Checked, threat_model: ThreatModel, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """Best of no perturbation and all restarts: misclassified first, loss second."""
        best = x.clone()
        best_loss, broken = judge(network, loss, x, y, self.num_samples)
        for _ in tracked(range(self.restarts)):
            remaining = (~broken).nonzero().squeeze(1) if self.early_stop else torch.arange(len(x), device=x.device)
            if len(remaining) == 0:
                break
            images, labels = x[remaining], y[remaining]
            with part(remaining if self.early_stop else None):
                x_adv = self.ascend(network, threat_model.select(remaining), images, labels, loss)
                value, wrong = judge(network, loss, x_adv, labels, self.num_samples)
            better = (wrong & ~broken[remaining]) | ((wrong == broken[remaining]) & (value > best_loss[remaining]))
            chosen = remaining[better]
            best[chosen], best_loss[chosen], broken[chosen] = x_adv[better], value[better], wrong[better]
        return best

    def ascend(self, network: Checked, threat_model: ThreatModel, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """One run on checked images, (B, C, H, W): the last iterate or, stopping early, the first misclassified."""
        with part():
            return self._ascend(network, threat_model, x, y, loss)

    def _ascend(self, network: Checked, threat_model: ThreatModel, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        x_adv = self._started(threat_model, x)
        last, remaining = x_adv.clone(), torch.arange(len(x), device=x.device)
        for _ in tracked(range(self.steps)):
            with part(remaining if self.early_stop else None):
                gradient, _, wrong = input_gradient(network, loss, x_adv, y, self.num_samples)
            if self.early_stop and wrong.any():
                last[remaining] = x_adv
                on = ~wrong
                remaining, x, y, x_adv, gradient = remaining[on], x[on], y[on], x_adv[on], gradient[on]
                threat_model = threat_model.select(on)
                if len(remaining) == 0:
                    return last
            length = self.step_size if self.absolute else self.step_size * threat_model.radius
            step = threat_model.steepest_direction(gradient, self.sparsity, x_adv).mul_(length)
            x_adv = threat_model.project(step.add_(x_adv), x)
        return last.index_copy(0, remaining, x_adv) if self.early_stop else x_adv

    def _started(self, threat_model: ThreatModel, x: Tensor) -> Tensor:
        if self.start == "random":
            return threat_model.sample(x)
        return threat_model.project(x + 0.001 * randn_like(x), x) if self.start == "gaussian" else x.clone()


class FGSM(PGD):
    """One step of the whole radius (Goodfellow et al. 2015), in every norm; the other arguments are :class:`PGD`'s.

    >>> from robust.threat_models import LinfBall
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x, y = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2), torch.tensor([0])
    >>> FGSM()(network, LinfBall(0.125), x, y)  # down with the pixel of the label, up with the other
    tensor([[[[0.6250, 0.3750]]]])

    Args:
        step_size: size of the step as a fraction of the radius; fast adversarial training (Wong et al. 2020) takes 1.25
            from a random start.
        random_start: begin at a random point of the threat model instead of the image.
        loss: the loss to ascend.
        num_samples: number of passes over which the gradient is averaged.
        mode: the network's mode meanwhile.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        step_size: float = 1.0,
        random_start: bool = False,
        loss: Literal["cross_entropy", "margin", "dlr"] | Loss = "cross_entropy",
        num_samples: int = 1,
        mode: Mode = "eval",
    ) -> None:
        start: Start = "random" if random_start else "clean"
        super().__init__(1, step_size, start=start, loss=loss, num_samples=num_samples, mode=mode)
