"""The largest box that a verifier certifies, for each example (Liu, Tomioka, Cevher 2019).

Maximises sum_i log epsilon_i over the budgets epsilon of one example, so that every margin's lower bound over the box
|x'_i - x_i| <= epsilon_i stays above a small slack, by an augmented Lagrangian through a differentiable verifier.
Source: On Certifying Non-uniform Bound against Adversarial Attacks (C. Liu, R. Tomioka, V. Cevher, 2019), which bounds
fully connected networks by linear relaxations; here any :class:`robust.bounds.Verifier` does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from robust.bounds.automatic import Auto
from robust.bounds.feed_forward import FeedForwardVerifier
from robust.bounds.verifier import Verifier
from robust.errors import require
from robust.threat_models import Box, PixelBox

Optimizer = Literal["sgd", "adam"]
OPTIMIZERS: dict[Optimizer, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class CertifiedBox(NamedTuple):
    """Budgets (B, C, H, W), 0 where nothing is certified, and whether each example's box is certified, bool (B,)."""

    budgets: Tensor
    certified: Tensor


class LargestCertifiedBox:
    """Maximises the certified volume of each example of a batch, independently of the others.

    With epsilon = v^2, margins m_k, constraints c_k = m_k - slack, multipliers lambda_k <= 0 and a penalty beta, each
    step descends -sum_i log epsilon_i + sum_k (lambda_k h_k + beta / 2 h_k^2), h_k = min(c_k, -lambda_k / beta). Every
    ``dual_every`` steps lambda grows by beta h, every ``penalty_every`` steps beta grows. What violates a constraint
    at the end is shrunk until nothing does; if budgets on the way were larger and violated nothing, those are taken.

    The published code works on images in [-1, 1], where budgets count twice, and descends the mean over a batch of 10
    by SGD at 1e-3. Here each example descends its own Lagrangian in [0, 1], so that no result depends on the batch; as
    published it is ``sgd`` at 1e-4, by which no budget gets above about 4 * learning_rate * steps, 0.16. On
    convolutional networks ``sgd`` diverges at rates that get further, unless ``gradient_clip`` is set (200 to 500 at
    1e-3 on MNIST); Adam does not and finds larger boxes, hence the default.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x, y = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2), torch.tensor([0])
    >>> found = LargestCertifiedBox(steps=100, learning_rate=0.05)(network, x, y)
    >>> found.certified, bool(found.budgets.sum() < 0.5)  # x_1 - x_2 is 1/2: more, and a corner is of the other class
    (tensor([True]), True)

    Args:
        verifier: verifier of the margins and their gradient; ``auto``: CROWN-IBP, by ``FeedForwardVerifier``;
            evaluations of a network that it cannot bound take their module's verifier.
        steps: number of descent steps.
        optimizer: ``adam``, whose steps do not depend on the Lagrangian's scale, or ``sgd``, as published.
        learning_rate: step size of the descent in v, the budgets' square roots.
        initial: budget of every pixel at the start, in pixel units.
        slack: value that every margin must exceed.
        dual_every: steps between updates of the multipliers.
        penalty: beta at the start.
        penalty_growth: factor of beta.
        penalty_every: steps between its growths.
        gradient_clip: largest norm of an example's gradient to v, divided by the square root of ``penalty_growth``
            whenever beta grows; none by default.
        cap: largest budget of a pixel; none by default, as published: irrelevant pixels then get budgets above 1,
            larger than the pixel's range, which inflates the volume.
        cut: bound over the box cut to [0, 1], as everywhere else here; the published box is not cut, hence off.
        keep_best: take the largest certified budgets on the way where they exceed the last ones; not so published.
        uniform: one budget for all pixels of an example (of which the logarithm is maximised, not n times it).
        shrink: factor of the budgets of an example that violates a constraint at the end.
        max_shrinks: number of such reductions before the example counts as not certified.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        verifier: Verifier | Auto = "auto",
        steps: int = 400,
        optimizer: Optimizer = "adam",
        learning_rate: float = 1e-2,
        initial: float = 1e-3,
        slack: float = 1e-4,
        dual_every: int = 5,
        penalty: float = 1.0,
        penalty_growth: float = 5.0,
        penalty_every: int = 80,
        gradient_clip: float | None = None,
        cap: float | None = None,
        cut: bool = False,
        keep_best: bool = True,
        uniform: bool = False,
        shrink: float = 0.99,
        max_shrinks: int = 1000,
    ) -> None:
        for setting, count in (("steps", steps), ("dual_every", dual_every), ("penalty_every", penalty_every)):
            require(count >= 1, setting, count, "give at least 1")
        require(optimizer in OPTIMIZERS, "optimizer", optimizer, "give sgd or adam")
        require(learning_rate > 0, "learning_rate", learning_rate, "give a positive step size")
        require(initial > 0, "initial", initial, "give a positive budget, in pixel units")
        require(slack >= 0, "slack", slack, "give 0 or above")
        require(penalty > 0, "penalty", penalty, "give a positive weight")
        require(penalty_growth >= 1, "penalty_growth", penalty_growth, "give a factor of at least 1")
        require(gradient_clip is None or gradient_clip > 0, "gradient_clip", gradient_clip, "give a norm > 0")
        require(cap is None or cap >= initial, "cap", cap, f"give a budget of at least initial, {initial:g}")
        require(0 < shrink < 1, "shrink", shrink, "give a factor in (0, 1)")
        require(max_shrinks >= 0, "max_shrinks", max_shrinks, "give 0 or more")
        self._has_own_verifier = not isinstance(verifier, str)
        self.verifier: Verifier = FeedForwardVerifier("crown-ibp") if isinstance(verifier, str) else verifier
        self.steps, self.optimizer, self.learning_rate = steps, optimizer, learning_rate
        self.initial, self.slack = initial, slack
        self.dual_every = dual_every
        self.penalty, self.penalty_growth, self.penalty_every = penalty, penalty_growth, penalty_every
        self.gradient_clip = gradient_clip
        self.cap, self.cut, self.keep_best, self.uniform = cap, cut, keep_best, uniform
        self.shrink, self.max_shrinks = shrink, max_shrinks

    def by_default(self, verifier: Verifier) -> LargestCertifiedBox:
        """This search by another verifier, unless one was given."""
        if self._has_own_verifier:
            return self
        search = copy.copy(self)
        search.verifier = verifier
        return search

    def __call__(
        self, network: nn.Module, x: Tensor, y: Tensor, advance: Callable[[], None] = lambda: None
    ) -> CertifiedBox:
        """The largest box found for each example.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K), that the verifier can bound.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
            advance: called after every step.

        Returns:
            The boxes. An example is not certified where it is misclassified, or not even its own image is certified.
        """
        with torch.inference_mode(False), torch.no_grad():
            x, y = x.clone(), y.clone()  # tensors of inference mode cannot enter a graph
            budgets = torch.zeros_like(x)
            certified = self._holds(network, x, budgets, y)
            chosen = certified.nonzero().squeeze(1)
            if len(chosen) > 0:
                last, best = self._maximise(network, x[chosen], y[chosen], advance)
                last, holds = self._shrink(network, x[chosen], last, y[chosen])
                better = best.log().flatten(1).sum(1) > last.log().flatten(1).sum(1)
                budgets[chosen] = torch.where(better.view(-1, 1, 1, 1), best, last)
                certified[chosen] = holds | better
        return CertifiedBox(budgets, certified)

    def _constraints(self, network: nn.Module, x: Tensor, budgets: Tensor, y: Tensor) -> Tensor:
        """The constraints c (B, K-1), at least 0 where a class is ruled out; NaN where the budgets are not finite."""
        finite = budgets.isfinite().flatten(1).all(1)  # not so where an optimizer has diverged
        if not bool(finite.all()):
            kept = torch.where(finite.view(-1, *[1] * (x.dim() - 1)), budgets, 0.0)
            return self._constraints(network, x, kept, y).where(finite[:, None], torch.nan)
        box = PixelBox(budgets).interval(x) if self.cut else Box(x - budgets, x + budgets)
        return self.verifier.margins(network, box, y) - self.slack

    def _holds(self, network: nn.Module, x: Tensor, budgets: Tensor, y: Tensor) -> Tensor:
        """Whether all constraints hold, strictly also without slack; bool (B,)."""
        return (self._constraints(network, x, budgets, y) > 0).all(1)

    def _maximise(self, network: nn.Module, x: Tensor, y: Tensor, advance: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """The last budgets (B, C, H, W), which hold the constraints about, and the largest on the way that held them.

        The latter are 0 where none did.
        """
        v = x.new_full((len(x), 1, 1, 1) if self.uniform else x.shape, math.sqrt(self.initial))
        best, best_volume = torch.zeros_like(v), x.new_full((len(x),), -math.inf)
        optimizer = OPTIMIZERS[self.optimizer]([v], lr=self.learning_rate)  # type: ignore[call-arg]
        multipliers = x.new_zeros(len(x), 1)  # (B, 1) until the first update, then (B, K-1)
        penalty, clip = self.penalty, self.gradient_clip
        largest = math.inf if self.cap is None else math.sqrt(self.cap)
        for step in range(1, self.steps + 1):
            v.grad, log_volume, constraints, h = self._gradient(network, x, y, v, multipliers, penalty)
            if self.keep_best:
                better = (constraints > 0).all(1) & (log_volume > best_volume)
                best_volume = torch.where(better, log_volume, best_volume)
                best[better] = v[better].square()
            if clip is not None:
                _clip(v.grad, clip)
            optimizer.step()
            v.clamp_(-largest, largest)
            if step % self.dual_every == 0:
                multipliers = multipliers + penalty * h
            if step % self.penalty_every == 0:
                penalty *= self.penalty_growth
                clip = None if clip is None else clip / math.sqrt(self.penalty_growth)
            advance()
        return v.square().expand_as(x).clone(), best.expand_as(x)

    def _gradient(
        self, network: nn.Module, x: Tensor, y: Tensor, v: Tensor, multipliers: Tensor, penalty: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradient of the Lagrangian to ``v``, of its shape; log volume (B,); constraints c and h, both (B, K-1)."""
        v = v.detach().requires_grad_()
        with torch.enable_grad():
            log_volume = v.square().log().flatten(1).sum(1)
            constraints = self._constraints(network, x, v.square(), y)
            h = torch.minimum(constraints, -multipliers / penalty)
            lagrangian = -log_volume + (multipliers * h + penalty / 2 * h.square()).sum(1)
            (gradient,) = torch.autograd.grad(lagrangian.sum(), v)
        return gradient, log_volume.detach(), constraints.detach(), h.detach()

    def _shrink(self, network: nn.Module, x: Tensor, budgets: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Budgets (B, C, H, W) shrunk until they hold the constraints, 0 where they never do; and whether they do."""
        violated = torch.arange(len(x), device=x.device)
        for shrinks in range(self.max_shrinks + 1):
            if shrinks > 0:
                budgets[violated] *= self.shrink
            violated = violated[~self._holds(network, x[violated], budgets[violated], y[violated])]
            if len(violated) == 0:
                break
        certified = torch.ones_like(y, dtype=torch.bool)
        certified[violated] = False
        budgets[violated] = 0.0  # where an optimizer has diverged, not a number
        return budgets, certified


def _clip(gradient: Tensor, largest: float) -> None:
    """Scale each example's gradient (B, ...) down to that norm, in place."""
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    gradient.mul_((largest / norm).clamp(max=1.0).view(-1, *[1] * (gradient.dim() - 1)))
