"""Per-pixel boxes, and the linf ball, which is one of equal budgets."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.checks import check_budgets, check_images, check_points, checked_before
from robust.errors import require
from robust.noise_fitting import LinfFit, fit_linf
from robust.random import rand_like
from robust.threat_models.base import Box, Norm, ThreatModel, pixel_lengths


class PixelBox:
    """Non-uniform budgets: ``|x'_i - x_i| <= budgets_i``, cut to [0, 1] (contextual budgets, Sec. 3.1).

    >>> x = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2)
    >>> box = PixelBox(torch.tensor([0.25, 0.125]).view(1, 1, 1, 2))
    >>> [side.flatten().tolist() for side in box.interval(x)]
    [[0.0, 0.375], [0.25, 0.625]]
    >>> box.project(torch.ones_like(x), x).flatten().tolist()
    [0.25, 0.625]

    Args:
        budgets: non-negative tensor that broadcasts to (B, C, H, W). It stays in the graph: the box is
            differentiable to the budgets, with gradient zero where the box is cut by [0, 1].

    Raises:
        SettingError: if a budget is negative or not finite, or the budgets have one dimension, which would be that of
            the images' columns; on use, if they do not broadcast to the images.
    """

    norm: Norm | None = None
    epsilon: float | None = None
    is_box = True

    def __init__(self, budgets: Tensor) -> None:
        check_budgets(budgets)
        remedy = "give one number, or (B, C, H, W); of each example: budgets.view(-1, 1, 1, 1)"
        require(budgets.dim() != 1 or budgets.numel() == 1, "budgets", tuple(budgets.shape), remedy)
        self.budgets = budgets

    def _check_shape(self, x: Tensor) -> None:
        """Check the shape: budgets of more examples or pixels would silently broadcast the images to a larger shape."""
        shape, sizes = tuple(self.budgets.shape), zip(reversed(self.budgets.shape), reversed(x.shape), strict=False)
        fits = len(shape) <= x.dim() and all(budget in (1, size) for budget, size in sizes)
        require(fits, "budgets", shape, f"give a shape that broadcasts to {tuple(x.shape)}")

    def _budgets(self, x: Tensor) -> Tensor:
        """The budgets in the precision of ``x``; numpy's are in float64, and would convert float32 images."""
        return self.budgets.to(x.dtype) if x.dtype == torch.float32 else self.budgets

    @property
    def radius(self) -> Tensor:
        """The budgets."""
        return self.budgets

    @property
    def per_pixel(self) -> Tensor | None:
        """The budgets, where they have four dimensions."""
        return self.budgets if self.budgets.dim() == 4 else None

    def interval(self, x: Tensor) -> Box:
        """The budgets around ``x`` (B, C, H, W), cut to [0, 1]."""
        check_images(x)
        self._check_shape(x)
        budgets = self._budgets(x)
        return Box((x - budgets).clamp(min=0.0), (x + budgets).clamp(max=1.0))

    def region(self, x: Tensor) -> Box:
        """The box itself."""
        return self.interval(x)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Each pixel of ``x_adv`` cut to its interval around ``x``; all (B, C, H, W)."""
        check_points(x_adv, x)
        self._check_shape(x)
        budgets = self._budgets(x)
        return (x_adv - x).clamp(-budgets, budgets).add_(x).clamp_(0.0, 1.0).to(x.dtype)

    def sample(self, x: Tensor) -> Tensor:
        """Uniform in the box around ``x`` (B, C, H, W)."""
        lower, upper = self.interval(x)
        return lower + (upper - lower) * rand_like(x)

    def steepest_direction(
        self, gradient: Tensor, fraction: Tensor | float = 1.0, x_adv: Tensor | None = None
    ) -> Tensor:
        """Sign of the gradient, (B, C, H, W), wherever the step begins.

        >>> LinfBall(0.1).steepest_direction(torch.tensor([3.0, -0.1, 0.0]).view(1, 1, 1, 3)).flatten().tolist()
        [1.0, -1.0, 0.0]
        """
        return gradient.sign()

    def fit_noise(self, x: Tensor, noise: Tensor, linf: LinfFit = "tanh") -> Tensor:
        """Not defined: the generator of noise knows balls of a norm.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"noise is fitted to norm balls, not to a {type(self).__name__}")

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each pixel is within its budget and in [0, 1], up to rounding; bool (B,).

        >>> x = torch.full((2, 1, 1, 1), 0.5)
        >>> LinfBall(0.25).contains(x + torch.tensor([0.25, 0.3]).view(2, 1, 1, 1), x).tolist()
        [True, False]
        """
        check_images(x)
        self._check_shape(x)
        return ((x_adv >= 0) & (x_adv <= 1) & (pixel_lengths(x_adv, x) <= 1.00001 * self.budgets)).flatten(1).all(1)

    def lies_in(self, other: ThreatModel, batch: int) -> Tensor:
        """For each example, whether ``other`` is a box whose budgets are at least as large; bool (batch,).

        >>> budgets = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
        >>> PixelBox(budgets).lies_in(LinfBall(0.2), batch=2).tolist()
        [True, False]
        """
        if not other.is_box:
            return torch.tensor(False).expand(batch)
        smaller = self.budgets.detach() <= torch.as_tensor(other.radius).detach()
        return smaller.reshape(len(smaller) if smaller.dim() == 4 else 1, -1).all(1).expand(batch)

    def select(self, chosen: Tensor) -> PixelBox:
        """The budgets of the examples ``chosen``; the same box where all examples have the same."""
        per_example = self.budgets.dim() == 4 and len(self.budgets) > 1
        if not per_example:
            return self
        with checked_before():
            return PixelBox(self.budgets[chosen])


class LinfBall(PixelBox):
    """Uniform budgets: ``|x' - x|_inf <= epsilon``, cut to [0, 1].

    >>> x = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2)
    >>> LinfBall(0.25).interval(x).upper.flatten().tolist()
    [0.25, 0.75]

    Args:
        epsilon: radius in [0, 1].

    Raises:
        SettingError: if epsilon is outside [0, 1].
    """

    norm: Norm | None = "linf"
    epsilon: float

    def __init__(self, epsilon: float) -> None:
        require(0.0 <= epsilon <= 1.0, "epsilon", epsilon, "give a radius in pixel units, between 0 and 1")
        with checked_before():
            super().__init__(torch.tensor(epsilon))
        self.epsilon = epsilon

    def interval(self, x: Tensor) -> Box:
        """The radius around ``x`` (B, C, H, W), cut to [0, 1]."""
        check_images(x)
        return Box((x - self.epsilon).clamp(min=0.0), (x + self.epsilon).clamp(max=1.0))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Project as :meth:`PixelBox.project` does, by a number, which takes half the time of a tensor."""
        check_points(x_adv, x)
        return (x_adv - x).clamp_(-self.epsilon, self.epsilon).add_(x).clamp_(0.0, 1.0)

    def fit_noise(self, x: Tensor, noise: Tensor, linf: LinfFit = "tanh") -> Tensor:
        """``x`` plus noise of at most the radius a pixel; see :func:`robust.noise_fitting.fit_linf`."""
        return fit_linf(x, noise, self.epsilon, linf)
