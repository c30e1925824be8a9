"""Auto-PGD: projected gradient ascent without a step size to choose (Croce & Hein 2020; in l1: 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from robust.attacks._apgd_pace import Halving, Pace, Thinning
from robust.attacks._checked import Checked, attacking, check_loss, input_gradient, judge, named_loss
from robust.errors import require
from robust.losses import Loss, margin, targeted_dlr
from robust.modes import MODES, Mode
from robust.progress import tracked
from robust.random import part, randn_like
from robust.threat_models import ThreatModel, ball

# Fraction of the steps and multiple of the radius in l1: what is found in a wider ball starts the search in the next.
_RADII_OF_L1 = ((0.3, 3.0), (0.3, 2.0), (0.4, 1.0))


class APGD:
    """Ascent that halves its step, or in l1 thins it out, for each example where progress stalls.

    For linf, l2, l1 and per-pixel boxes; use it in place of AutoAttack where that has no answer, i.e. for per-pixel
    budgets. Examples that are already misclassified do not change. Others leave the search as soon as they are
    misclassified, unless a layer normalises by the batch. Networks with noise are attacked to the end: they misclassify
    one of many images by chance.

    Args:
        steps: number of ascent steps of a run.
        restarts: number of independent random starts of examples not yet broken; with targets, for each target.
        loss: ``"cross_entropy"``, ``"dlr"``, ``"targeted_dlr"`` (one run for each target), or a function (logits,
            labels) -> (B,).
        targets: number of other classes that ``"targeted_dlr"`` aims at, most likely ones first; at most K - 1 are.
        num_samples: gradients are means over so many passes, for networks that draw random numbers (EOT).
        wide_start: whether to search balls of 3 and 2 times the radius first, in l1.
        mode: the network's mode meanwhile; see :class:`robust.attacks.PGD`.

    Raises:
        SettingError: if a setting is out of its range; on use, if the loss needs more classes than there are.
    """

    def __init__(
        self,
        steps: int = 100,
        restarts: int = 1,
        loss: Literal["cross_entropy", "margin", "dlr", "targeted_dlr"] | Loss = "cross_entropy",
        targets: int = 9,
        num_samples: int = 1,
        wide_start: bool = True,
        mode: Mode = "eval",
    ) -> None:
        for name, count in (
            ("steps", steps),
            ("restarts", restarts),
            ("targets", targets),
            ("num_samples", num_samples),
        ):
            require(count >= 1, name, count, "give at least 1")
        require(mode in MODES, "mode", mode, f"give one of {', '.join(MODES)}")
        self.loss = None if loss == "targeted_dlr" else named_loss(loss)
        self.steps = steps
        self.restarts = restarts
        self.targets = targets
        self.num_samples = num_samples
        self.wide_start = wide_start
        self.mode: Mode = mode

    def __call__(self, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
        """A misclassified image if one was found, else that of highest loss in the last run; (B, C, H, W).

        Of networks with noise, that of highest margin of all runs' images of highest loss.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            threat_model: set of perturbed images to search.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
        """
        with attacking(network, self.mode, x, y, self.num_samples) as (checked, x, y):
            x_adv = x.clone()
            _, wrong = judge(checked, margin, x, y, self.num_samples)
            highest = torch.full_like(y, -torch.inf, dtype=x.dtype)
            remaining = (~wrong).nonzero().squeeze(1)
            for loss in tracked(list(self._losses(checked, x, y))):
                if len(remaining) == 0:
                    break
                with part(remaining):
                    found, wrong = self._run(
                        checked,
                        threat_model.select(remaining),
                        x[remaining],
                        y[remaining],
                        partial(_of, loss, remaining),
                    )
                    if checked.certain:
                        x_adv[remaining] = found
                    else:
                        value, _ = judge(checked, margin, found, y, self.num_samples)
                        x_adv = torch.where(_wide(value > highest), found, x_adv)
                        highest = torch.maximum(value, highest)
                remaining = remaining[~wrong]
            return x_adv

    def check(self, network: nn.Module, threat_model: ThreatModel, x: Tensor) -> None:
        """Check, by a pass of images ``x`` (B, C, H, W), that the network has enough classes for the loss.

        Raises:
            SettingError: if it has not.
        """
        if self.loss is None:
            _require_classes(network(x).shape[1])
        else:
            check_loss(self.loss, network, x)

    def _losses(self, network: Checked, x: Tensor, y: Tensor) -> Iterator[Callable[[Tensor], Loss]]:
        """Yield, for each run, a function from example indices to their loss."""
        logits = network(x)
        classes = logits.shape[1]
        if (same := self.loss) is not None:
            for _ in range(self.restarts):
                yield lambda remaining: same
            return
        _require_classes(classes)
        order = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
        for rank in range(min(self.targets, classes - 1)):
            for _ in range(self.restarts):
                yield partial(_towards, order[:, rank])

    def _run(
        self, network: Checked, threat_model: ThreatModel, x: Tensor, y: Tensor, loss: Callable[[Tensor], Loss]
    ) -> tuple[Tensor, Tensor]:
        """Images found (B, C, H, W) and whether they are misclassified (B,)."""
        if threat_model.norm != "l1" or not self.wide_start:
            climb = _Climb(network, threat_model, x, y, loss, self.num_samples)
            return climb.run(threat_model.sample(x), self.steps)
        start = x + randn_like(x)
        for fraction, multiple in _RADII_OF_L1:
            # 1e6 is the largest radius of a ball
            wide = ball("l1", min(multiple * float(threat_model.radius), 1e6))
            climb = _Climb(network, wide, x, y, loss, self.num_samples)
            steps = max(round(fraction * self.steps), 1)
            start, wrong = climb.run(wide.project(start, x), steps, stop=multiple == 1)
        return start, wrong


def _require_classes(classes: int) -> None:
    require(classes >= 4, "loss", "targeted_dlr", f"take cross_entropy or margin: there are only {classes} classes")


def _of(loss: Callable[[Tensor], Loss], remaining: Tensor, examples: Tensor) -> Loss:
    return loss(remaining[examples])


def _towards(target: Tensor, examples: Tensor) -> Loss:
    return partial(targeted_dlr, target=target[examples])


class _Climb:
    """One run of the ascent: the remaining examples, their current and best images."""

    _ROWS = ("x", "y", "examples", "tried", "x_adv", "before", "gradient", "best", "best_gradient", "best_loss")

    def __init__(
        self,
        network: Checked,
        threat_model: ThreatModel,
        x: Tensor,
        y: Tensor,
        loss: Callable[[Tensor], Loss],
        draws: int,
    ) -> None:
        self.network, self.threat_model, self.loss, self.draws = network, threat_model, loss, draws
        self.x, self.y = x, y
        self.examples = torch.arange(len(x), device=x.device)
        self._all_stay = any(isinstance(layer, _NormBase) and layer.training for layer in network.modules())

    def run(self, start: Tensor, steps: int, stop: bool = True) -> tuple[Tensor, Tensor]:
        """Images found (B, C, H, W), and whether an example stopped (B,).

        With ``stop``, examples stop at their first misclassified image; that of others is the one of highest loss.
        """
        images, stopped = start.clone(), torch.zeros_like(self.y, dtype=torch.bool)
        self.tried = self.x_adv = self.before = self.best = start
        self.gradient, self.best_loss, wrong = self._examine()
        self.best_gradient = self.gradient
        l1 = self.threat_model.norm == "l1"
        self.pace: Pace = Thinning(self.x, start, steps) if l1 else Halving(self.best_loss, steps)
        for step in tracked(range(steps)):
            if stop:
                self._leave(wrong, images, stopped)
            if stopped.all():
                return images, stopped
            self.tried, self.before = self._step(momentum=self.pace.momentum if step > 0 else 0.0), self.x_adv
            gradient, loss, wrong = self._examine()
            self._go_on(gradient, loss)
        if stop:
            self._leave(wrong, images, stopped)
        on = ~stopped[self.examples]
        images[self.examples[on]] = self.best[on]
        return images, stopped

    def _examine(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (B, C, H, W) and loss (B,) of the images tried, and whether they are misclassified (B,)."""
        with part(self.examples):
            return input_gradient(self.network, self.loss(self.examples), self.tried, self.y, self.draws)

    def _leave(self, wrong: Tensor, images: Tensor, stopped: Tensor) -> None:
        """Keep the misclassified images among those tried, and continue with the other examples."""
        first = wrong & ~stopped[self.examples]
        if not first.any():
            return
        gone, on = self.examples[first], ~first
        images[gone], stopped[gone] = self.tried[first], True
        if self._all_stay:  # the others' logits depend on them
            return
        self.threat_model = self.threat_model.select(on)
        self.pace.select(on)
        for name in self._ROWS:
            setattr(self, name, getattr(self, name)[on])

    def _step(self, momentum: float) -> Tensor:
        x, x_adv, pace = self.x, self.x_adv, self.pace
        direction = self.threat_model.steepest_direction(self.gradient, pace.fraction)
        step = _wide(pace.step_size).to(x.dtype) * self.threat_model.radius  # logits may be of another type
        ahead = self.threat_model.project(x_adv + step * direction, x)
        if momentum == 0.0:
            return ahead
        target = x_adv + (1 - momentum) * (ahead - x_adv) + momentum * (x_adv - self.before)
        return self.threat_model.project(target, x)

    def _go_on(self, gradient: Tensor, loss: Tensor) -> None:
        """Continue from the images tried, or from the best images."""
        higher = loss > self.best_loss
        self.best_loss = torch.where(higher, loss, self.best_loss)
        self.best = torch.where(_wide(higher), self.tried, self.best)
        self.best_gradient = torch.where(_wide(higher), gradient, self.best_gradient)
        back = _wide(self.pace.update(loss, self.best_loss, self.best))
        self.x_adv = torch.where(back, self.best, self.tried)
        self.gradient = torch.where(back, self.best_gradient, gradient)


def _wide(each: Tensor) -> Tensor:
    return each[:, None, None, None]
