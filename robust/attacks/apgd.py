"""Auto-PGD: projected gradient ascent without a step size to choose (Croce & Hein 2020; in l1: 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from robust.attacks._checked import Checked, attacking, input_gradient, judge, named_loss
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
    budgets. Examples that are misclassified already are left as they are.

    Args:
        steps: number of ascent steps of a run.
        restarts: independent random starts for what is not yet broken; with targets, for each of them.
        loss: ``"cross_entropy"``, ``"dlr"``, ``"targeted_dlr"`` (one run for each target), or a function (logits,
            labels) -> (B,).
        targets: number of other classes that ``"targeted_dlr"`` aims at, most likely ones first; at most K - 1 are.
        num_samples: gradients and verdicts are taken over so many passes, for networks that draw random numbers (EOT).
        wide_start: in l1, search balls of 3 and 2 times the radius first.
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

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            threat_model: where to search.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
        """
        with attacking(network, self.mode, x, y) as (checked, x, y):
            x_adv = x.clone()
            _, wrong = judge(checked, margin, x, y, self.num_samples)
            remaining = (~wrong).nonzero().squeeze(1)
            for loss in tracked(list(self._losses(checked, x, y))):
                if len(remaining) == 0:
                    break
                with part(remaining):
                    x_adv[remaining], wrong = self._run(
                        checked, threat_model.select(remaining), x[remaining], y[remaining], loss(remaining)
                    )
                remaining = remaining[~wrong]
            return x_adv

    def _losses(self, network: Checked, x: Tensor, y: Tensor) -> Iterator[Callable[[Tensor], Loss]]:
        """For each run what gives the loss of those examples that the run is about, by their indices."""
        logits = network(x)
        classes = logits.shape[1]
        if (same := self.loss) is not None:
            for _ in range(self.restarts):
                yield lambda remaining: same
            return
        require(classes >= 4, "loss", "targeted_dlr", f"take cross_entropy or margin: there are only {classes} classes")
        order = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
        for rank in range(min(self.targets, classes - 1)):
            for _ in range(self.restarts):
                yield partial(_towards, order[:, rank])

    def _run(
        self, network: Checked, threat_model: ThreatModel, x: Tensor, y: Tensor, loss: Loss
    ) -> tuple[Tensor, Tensor]:
        """Images found (B, C, H, W) and whether they are misclassified (B,)."""
        if threat_model.norm != "l1" or not self.wide_start:
            climb = _Climb(network, threat_model, x, y, loss, self.num_samples)
            return climb.run(threat_model.sample(x), self.steps, stop=True)
        start = x + randn_like(x)
        for fraction, multiple in _RADII_OF_L1:
            wide = ball("l1", multiple * float(threat_model.radius))
            climb = _Climb(network, wide, x, y, loss, self.num_samples)
            x_adv, wrong = climb.run(wide.project(start, x), max(round(fraction * self.steps), 1), stop=multiple == 1)
            start = climb.best
        return x_adv, wrong


def _towards(target: Tensor, remaining: Tensor) -> Loss:
    return partial(targeted_dlr, target=target[remaining])


class _Climb:
    """One run of the ascent: where it is, the best that it saw, and the first that was misclassified."""

    def __init__(
        self, network: Checked, threat_model: ThreatModel, x: Tensor, y: Tensor, loss: Loss, draws: int
    ) -> None:
        self.threat_model = threat_model
        self.x = x
        self._examine = partial(input_gradient, network, loss, y=y, draws=draws)

    def run(self, start: Tensor, steps: int, stop: bool) -> tuple[Tensor, Tensor]:
        """Images found (B, C, H, W) and whether they are misclassified (B,); ``best`` is that of highest loss.

        With ``stop``, no further than to where all of them are.
        """
        x_adv, before = start, start
        gradient, loss, wrong = self._examine(x=x_adv)
        self.best, best_gradient, best_loss = x_adv, gradient, loss
        first_wrong = x_adv
        pace = _Thinning(self.x, x_adv, steps) if self.threat_model.norm == "l1" else _Halving(loss, steps)
        for _ in tracked(range(steps)):
            if stop and wrong.all():
                break
            x_adv, before = self._step(x_adv, before, gradient, pace), x_adv
            gradient, loss, now = self._examine(x=x_adv)
            first_wrong = torch.where(_wide(now & ~wrong), x_adv, first_wrong)
            wrong = wrong | now
            higher = loss > best_loss
            best_loss = torch.where(higher, loss, best_loss)
            self.best = torch.where(_wide(higher), x_adv, self.best)
            best_gradient = torch.where(_wide(higher), gradient, best_gradient)
            back = _wide(pace.update(loss, best_loss, self.best))
            x_adv = torch.where(back, self.best, x_adv)
            gradient = torch.where(back, best_gradient, gradient)
        return torch.where(_wide(wrong), first_wrong, self.best), wrong

    def _step(self, x_adv: Tensor, before: Tensor, gradient: Tensor, pace: _Halving | _Thinning) -> Tensor:
        direction = self.threat_model.steepest_direction(gradient, pace.fraction)
        target = x_adv + _wide(pace.step_size) * self.threat_model.radius * direction
        ahead = self.threat_model.project(target, self.x)
        if pace.momentum == 0.0 or before is x_adv:
            return ahead
        target = x_adv + (1 - pace.momentum) * (ahead - x_adv) + pace.momentum * (x_adv - before)
        return self.threat_model.project(target, self.x)


class _Halving:
    """Pace in linf, l2 and boxes (Croce & Hein 2020, Sec. 3); step sizes are fractions of the radius.

    An example's step is halved where less than 3/4 of the steps since the last check raised its loss, or where none
    raised its best since it was last halved. The checks come closer and closer together.
    """

    momentum = 0.25
    fraction = 1.0

    def __init__(self, loss: Tensor, steps: int) -> None:
        self.step_size = torch.full_like(loss, 2.0)
        self._window, self._least, self._less = (max(int(part * steps), 1) for part in (0.22, 0.06, 0.03))
        self._since = 0
        self._rises = torch.zeros_like(loss)
        self._last, self._checked = loss, loss
        self._halved = torch.ones_like(loss, dtype=torch.bool)

    def update(self, loss: Tensor, best_loss: Tensor, best: Tensor) -> Tensor:
        """Take note of a step; which examples go back to their best, bool (B,)."""
        self._rises += loss > self._last
        self._last = loss
        self._since += 1
        if self._since < self._window:
            return torch.zeros_like(self._halved)
        stuck = ~self._halved & (self._checked >= best_loss)
        self._halved = (self._rises <= 0.75 * self._window) | stuck
        self._checked = best_loss
        self.step_size = torch.where(self._halved, self.step_size / 2, self.step_size)
        self._rises.zero_()
        self._since = 0
        self._window = max(self._window - self._less, self._least)
        return self._halved


class _Thinning:
    """Pace in l1 (Croce & Hein 2021, Sec. 4).

    A step moves 1 / 1.5 of as many pixels as the example's best perturbation uses; where that number still falls it is
    of the whole radius again, else it shrinks.
    """

    momentum = 0.0

    def __init__(self, x: Tensor, start: Tensor, steps: int) -> None:
        self._x = x
        self._used = self._count(start)
        self.fraction = self._used / (1.5 * x[0].numel())
        self.step_size = torch.ones_like(self.fraction)
        self._window = max(int(0.04 * steps), 1)
        self._since = 0

    def _count(self, x_adv: Tensor) -> Tensor:
        return (x_adv != self._x).flatten(1).sum(1).to(self._x.dtype)

    def update(self, loss: Tensor, best_loss: Tensor, best: Tensor) -> Tensor:
        """Take note of a step; which examples go back to their best, bool (B,)."""
        self._since += 1
        if self._since < self._window:
            return torch.zeros_like(loss, dtype=torch.bool)
        used = self._count(best)
        thinner = used < 0.95 * self._used
        self.fraction = used / (1.5 * self._x[0].numel())
        self.step_size = torch.where(thinner, 1.0, (self.step_size / 1.5).clamp(min=0.1))
        self._used = used
        self._since = 0
        return thinner


def _wide(each: Tensor) -> Tensor:
    return each[:, None, None, None]
