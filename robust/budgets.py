"""Contextual perturbation budgets: from a generator's outputs to budgets of exact volume and range.

Source: Learning Contextual Perturbation Budgets for Training Robust Neural Networks, Sec. 3.1-3.3 (eq. 2-5). The
printed formulas of Sec. 3.3 mix volumes with their logarithms; here all is in logarithms, and relative to epsilon0:
r_i = epsilon_i / epsilon0. Then the volume constraint is sum_i log r_i = 0 whatever epsilon0 is, and the range is
[alpha_low, min(alpha_high, 1 / epsilon0)].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robust.checkpoints import load_part
from robust.checks import value_range
from robust.errors import SettingError, require
from robust.threat_models import PixelBox


def relative_budgets(outputs: Tensor, epsilon: float, alpha_low: float, alpha_high: float) -> Tensor:
    """Budgets relative to epsilon0, with product 1 over each example and each in the range (Sec. 3.3).

    >>> outputs = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2)
    >>> relative_budgets(outputs, epsilon=0.1, alpha_low=0.5, alpha_high=2.0)  # sqrt(2) and its inverse, of product 1
    tensor([[[[1.4142, 0.7071]]]])
    >>> relative_budgets(torch.full((1, 1, 1, 2), 0.9), epsilon=0.1, alpha_low=0.5, alpha_high=2.0)
    tensor([[[[1., 1.]]]])

    Args:
        outputs: the generator's outputs in (0, 1), shape (B, C, H, W).
        epsilon: epsilon0 in (0, 1], the uniform budget of the same volume.
        alpha_low: smallest budget over epsilon0, in (0, 1] (alpha with a bar below, eq. 5).
        alpha_high: largest budget over epsilon0, at least 1 (alpha with a bar above, eq. 5).

    Returns:
        r of shape (B, C, H, W), differentiable to ``outputs``; constant outputs give r = 1.

    Raises:
        SettingError: if the range is impossible, or an output is outside [0, 1], for which no budgets have this volume.
    """
    check_budget_range(epsilon, alpha_low, alpha_high)
    # a generator under bf16 autocast gives bf16, in which no volume is exact
    outputs = _checked(outputs).to(torch.promote_types(outputs.dtype, torch.float32))
    low, high = math.log(alpha_low), math.log(min(alpha_high, 1 / epsilon))
    initial = (low + outputs * (high - low)).flatten(1)
    n, excess = initial.shape[1], initial.sum(1, keepdim=True)  # excess log volume over the target, which is 0
    # too large: every log budget moves the same fraction of its way down to low; too small: up to high
    room = torch.where(excess > 0, excess - n * low, n * high - excess)
    fraction = (excess.abs() / room.clamp(min=1e-12)).clamp(max=1)
    goal = torch.where(excess > 0, initial.new_tensor(low), initial.new_tensor(high))
    refined = initial + fraction * (goal - initial)
    return refined.exp().clamp(alpha_low, min(alpha_high, 1 / epsilon)).view_as(outputs)


def check_budget_range(epsilon: float, alpha_low: float, alpha_high: float) -> None:
    """Raise :class:`robust.errors.SettingError` where no such budgets exist.

    >>> check_budget_range(epsilon=0.1, alpha_low=1.5, alpha_high=2.0)
    Traceback (most recent call last):
    robust.errors.SettingError: alpha_low: got 1.5; give a value in (0, 1]: the mean budget must fit
    """
    require(0 < epsilon <= 1, "epsilon", epsilon, "give epsilon0 in (0, 1], in pixel units")
    require(0 < alpha_low <= 1, "alpha_low", alpha_low, "give a value in (0, 1]: the mean budget must fit")
    remedy = "give a value of at least 1: the mean budget must fit"
    require(alpha_high >= 1, "alpha_high", alpha_high, remedy)


def _checked(outputs: Tensor) -> Tensor:
    """The outputs, without what rounding has added to [0, 1]."""
    low, high = value_range(outputs)
    rounding = 16 * torch.finfo(outputs.dtype).eps
    remedy = "give a network whose outputs are in [0, 1], such as one that ends with a sigmoid"
    remedy = "its weights have diverged; give it a lower rate" if math.isnan(low) else remedy
    fits = low >= -rounding and high <= 1 + rounding
    require(fits, "generator", f"outputs from {low:.4g} to {high:.4g}", remedy)
    return outputs if low >= 0 and high <= 1 else outputs.clamp(0, 1)


class LearnedBudgets:
    """The budgets that a trained generator gives, for the evaluation of other models in them.

    >>> budgets = LearnedBudgets(nn.Sigmoid())  # in place of a generator: its output grows with the pixel
    >>> x = torch.tensor([0.25, 0.75]).view(1, 1, 1, 2)
    >>> volume = budgets(x, epsilon=0.1).budgets.prod() ** (1 / 2)
    >>> round(volume.item(), 4)
    0.1

    Args:
        generator: network from images to outputs in (0, 1) of the same shape, of the architecture that was trained; it
            is frozen and put in evaluation mode.
        checkpoint: checkpoint of the training by ``ContextualBudgets``; none if the generator is trained already.
        alpha_low: smallest budget over epsilon0, in (0, 1]. The default is the value of the checkpoint's training, and
            any other value is an error; give it if an early checkpoint does not hold it. Without a checkpoint the
            default is 0.5.
        alpha_high: largest budget over epsilon0, at least 1. The default is as for ``alpha_low``; without a checkpoint
            it is 2.

    Raises:
        SettingError: if the range is impossible or not that of the checkpoint's training, or not given where the
            checkpoint does not say it; if the checkpoint is absent, has no generator or that of another architecture;
            on use, if the generator's outputs are not of the images' shape or outside [0, 1].
    """

    def __init__(
        self,
        generator: nn.Module,
        checkpoint: str | None = None,
        alpha_low: float | None = None,
        alpha_high: float | None = None,
    ) -> None:
        trained = {"alpha_low": 0.5, "alpha_high": 2.0}
        if checkpoint is not None:
            trained = load_part(generator, checkpoint, "generator", "checkpoint").get("budget_range", {})
        self.alpha_low = _as_trained("alpha_low", alpha_low, trained, checkpoint)
        self.alpha_high = _as_trained("alpha_high", alpha_high, trained, checkpoint)
        check_budget_range(1.0, self.alpha_low, self.alpha_high)
        self.generator = generator.requires_grad_(False).eval()

    def __call__(self, x: Tensor, epsilon: float) -> PixelBox:
        """The budgets around ``x`` (B, C, H, W) with volume epsilon^n, epsilon in (0, 1]."""
        require(0 < epsilon <= 1, "epsilon", epsilon, "give the size of budgets per pixel, in (0, 1]")
        name, kind = "generator", type(self.generator).__name__
        try:
            outputs = self.generator.to(x)(x)
        except (RuntimeError, SettingError) as error:
            remedy = f"the data's images are {tuple(x.shape[1:])}; {str(error).splitlines()[0]}"
            raise SettingError(name, kind, remedy) from error
        remedy = f"its outputs are {tuple(outputs.shape[1:])}; give one for the data's images, {tuple(x.shape[1:])}"
        require(outputs.shape == x.shape, name, kind, remedy)
        return PixelBox(epsilon * relative_budgets(outputs, epsilon, self.alpha_low, self.alpha_high))


def _as_trained(name: str, value: float | None, trained: dict[str, float], checkpoint: str | None) -> float:
    """One end of the range: what was given, by default what the training had; with a checkpoint both must agree."""
    chosen = trained.get(name) if value is None else value
    if chosen is None:
        raise SettingError(name, value, f"the checkpoint {checkpoint} does not say; give that of its training")
    fits = checkpoint is None or chosen == trained.get(name, chosen)  # checkpoints of early versions do not say
    require(fits, name, value, f"the generator of {checkpoint} was trained with {trained.get(name)}; leave it out")
    return chosen
