"""The boundary attack on the linearised classifier, in the box [0, 1] (Hein & Andriushchenko 2017)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust.attacks._checked import Checked, attacking
from robust.errors import require
from robust.progress import tracked


class BoxedHalfspace:
    """min ``|delta|_2`` subject to <v, delta> <= b and 0 <= x + delta <= 1, for many x, v and b at once; b < 0.

    The solution is delta(mu) = clip(-mu v, -x, 1 - x) with the least mu that suffices: <v, delta(mu)> falls in
    straight pieces, whose ends are sorted once. In float64. Source: Hein & Andriushchenko 2017, Sec. 4.

    >>> problem = BoxedHalfspace(v=torch.tensor([[1.0, 1.0]]), x=torch.tensor([[0.5, 0.125]]))
    >>> problem.solve(b=torch.tensor([-0.5]), rows=torch.tensor([0]))  # the second pixel comes to its wall
    (tensor([[-0.3750, -0.1250]], dtype=torch.float64), tensor([True]))

    Args:
        v: normals (N, d).
        x: points (N, d) in [0, 1].
    """

    def __init__(self, v: Tensor, x: Tensor) -> None:
        self.v, self.x = v.double(), x.double()
        size = self.v.abs()
        room = torch.where(self.v > 0, self.x, 1 - self.x)
        ends = torch.where(size > 0, room / size, torch.inf)  # where each coordinate meets its wall
        ends, order = ends.sort(1)
        square, stopped = size.square().gather(1, order), (size * room).gather(1, order)
        # with k coordinates at their walls: -<v, delta(mu)> = slope_k mu + fixed_k
        self.slope = square.flip(1).cumsum(1).flip(1)
        self.fixed = stopped.cumsum(1) - stopped
        self.reached = torch.where(ends.isinf(), torch.inf, self.slope * ends + self.fixed)
        self.most = stopped.sum(1)

    def solve(self, b: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Solutions (R, d) in float64, and whether there are any, bool (R,).

        Where there is none, the solution is the point of the box with the least <v, delta>.

        Args:
            b: (R,), negative.
            rows: indices (R,) of the problems, out of N.
        """
        b, v, x = b.double(), self.v[rows], self.x[rows]
        feasible = self.most[rows] >= -b
        piece = torch.searchsorted(self.reached[rows], -b[:, None]).clamp(max=v.shape[1] - 1)
        slope, fixed = (part[rows].gather(1, piece).squeeze(1) for part in (self.slope, self.fixed))
        mu = torch.where(feasible & (slope > 0), (-b - fixed) / slope, torch.inf)
        step = torch.where(v == 0, 0.0, -mu[:, None] * v)
        return torch.maximum(torch.minimum(step, 1 - x), -x), feasible


class _Tries(NamedTuple):
    """Pairs of image and target class that are still tried."""

    image: Tensor  # (N,) index of the image in the batch
    offset: Tensor  # (N,) f_k - f_c at the image
    problem: BoxedHalfspace


class LinearizedBoundary:
    """BG: the nearest point where f, linearised at the image, gives another class, for all target classes at once.

    One such step rarely flips f itself: the gap between the classes is overstated by a factor that grows until a step
    does, and is then halved back between the last failure and the first success. A target is given up as soon as it
    can no longer come closer than another one's success, which changes no result. Source: Hein & Andriushchenko 2017;
    it is the attack BG of the general robustness framework, Sec. 5.

    Args:
        growth: factor of the gap from try to try (1.2 on MNIST, 1.3 on CIFAR-10).
        flat_growth: the same where the gradient is small, of a mean absolute entry below 0.01.
        tries: largest number of them.
        tolerance: the search ends where the perturbations of failure and success differ less in l2 (0.01 in the
            source: then a target that is farther may win by chance).

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self, growth: float = 1.2, flat_growth: float = 1.7, tries: int = 40, tolerance: float = 0.001
    ) -> None:
        require(growth > 1, "growth", growth, "give a factor above 1")
        require(flat_growth > 1, "flat_growth", flat_growth, "give a factor above 1")
        require(tries >= 1, "tries", tries, "give at least 1")
        require(tolerance > 0, "tolerance", tolerance, "give a positive distance")
        self.growth, self.flat_growth = growth, flat_growth
        self.tries, self.tolerance = tries, tolerance

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Images (B, C, H, W) that the network puts in another class than ``y``; the image itself where none is found.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            x: images (B, C, H, W) in [0, 1].
            y: the classes that it gives them, (B,).
        """
        with attacking(network, "eval", x, y) as (checked, x, y):
            tries, flat = self._linearize(checked, x, y)
            growth = torch.where(flat, self.flat_growth, self.growth)
            return _Search(checked, x, y, tries, growth, self.tolerance).run(self.tries)

    def _linearize(self, network: Checked, x: Tensor, y: Tensor) -> tuple[_Tries, Tensor]:
        """One try for each image and other class, and whether its gradient is small."""
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            logits = network(at)
            gradients = network.gradients(logits, at)
        logits = logits.detach()
        image = torch.arange(len(x), device=x.device)
        others = torch.ones_like(logits, dtype=torch.bool).scatter(1, y[:, None], False)
        image, target = others.nonzero(as_tuple=True)
        v = gradients[image, y[image]] - gradients[image, target]
        offset = logits[image, target].double() - logits[image, y[image]].double()
        # at a tie the least step may flip: one of length 1e-6, whatever the scale of the logits
        offset = torch.minimum(offset, -1e-6 * v.double().norm(dim=1))
        # 0.01 depends on that scale; it is the source's, and changes but the pace of the search
        return _Tries(image, offset, BoxedHalfspace(v, x.flatten(1)[image])), v.abs().mean(1) < 0.01


class _Search:
    """The state of the search over factors of the gap; all of it has one row a try, but ``best`` one an image."""

    def __init__(self, network: Checked, x: Tensor, y: Tensor, tries: _Tries, growth: Tensor, tolerance: float) -> None:
        self.network, self.x, self.y, self.tries = network, x, y, tries
        self.growth, self.tolerance = growth, tolerance
        self.x_adv = x.clone()
        self.best = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        one = torch.ones_like(tries.offset)
        self.low, self.high = 0 * one, torch.full_like(one, torch.inf)  # factors: last failure, first success
        self.low_norm, self.high_norm = 0 * one, torch.full_like(one, torch.inf)
        self.factor = one
        self.open = torch.ones_like(one, dtype=torch.bool)

    def run(self, limit: int) -> Tensor:
        """The nearest images found (B, C, H, W)."""
        for _ in tracked(range(limit)):
            self._try()
            # a bracket that is narrow enough, or above what another target has reached, is closed
            self.open &= self.high_norm - self.low_norm > self.tolerance
            self.open &= self.low_norm < self.best[self.tries.image]
            if not self.open.any():
                break
            between = 0.5 * (self.low + self.high)
            self.factor = torch.where(self.high.isinf(), self.factor * self.growth, between)
        return self.x_adv

    def _try(self) -> None:
        """Move every open try by its factor and note which flip."""
        rows = self.open.nonzero().squeeze(1)
        image = self.tries.image[rows]
        delta, feasible = self.tries.problem.solve(self.factor[rows] * self.tries.offset[rows], rows)
        at = (self.x.flatten(1)[image] + delta.to(self.x.dtype)).clamp_(0.0, 1.0).view(-1, *self.x.shape[1:])
        norm = delta.norm(dim=1)
        flipped = self.network(at).argmax(1) != self.y[image]
        low, high = rows[~flipped], rows[flipped]
        self.low[low], self.low_norm[low] = self.factor[low], norm[~flipped]
        self.high[high], self.high_norm[high] = self.factor[high], norm[flipped]
        self.open[rows[~flipped & ~feasible]] = False  # the whole box is used up
        nearest = self.best.scatter_reduce(0, image[flipped], norm[flipped], "amin")
        nearer = flipped & (norm == nearest[image]) & (norm < self.best[image])
        self.x_adv[image[nearer]], self.best = at[nearer], nearest
