"""Exact uniform draws from the part of an l2 ball that lies in the cube [0, 1]^m, in any number of dimensions.

Write S for the squared distance from the centre; uniform in the ball is uniform in the cube given S < r^2, an event
whose probability in the cube is far too small to wait for. Draw each pixel from the density proportional to
exp(-lambda delta^2) between its walls instead, with lambda such that S has the mean r^2, and accept with probability
exp(-lambda (r^2 - S)) where S < r^2: what is accepted is exactly uniform (rejection from an exponentially tilted
proposal). Some 1 in sqrt(pi m) is accepted.

Pixels whose walls are far away are dealt with together, which raises that to about sqrt(k / m) for k of them: given the
others, of squared distance S, they are uniform in a ball of k dimensions and radius sqrt(r^2 - S) (a Gaussian direction
and a radius), whose volume is the weight of the others; the draw is rejected where it leaves the cube. A pixel whose
own value is at a wall counts as one with a far wall: half of the ball is the whole, folded. Where the ball is inside
the cube, all pixels are such, and nothing is rejected.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

_AT_ONCE = 2**22  # numbers
_LEAST = 1e-6  # tilt times r^2: so flat that nothing is lost


def draw_from_cut_balls(centre: Tensor, radii: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Independent uniform draws from the open l2 balls around a point of the cube, cut to the cube.

    Args:
        centre: centre of the balls, (m,) in [0, 1], on the CPU.
        radii: radii of the balls, (E,), at least 0, on the CPU.
        count: number of draws from each ball.
        generator: random number generator, on the CPU.

    Returns:
        Perturbations (E, count, m) in float64: the draws less the centre; 0 where the radius is.
    """
    m, radii = len(centre), radii.double()
    found = torch.zeros(len(radii) * count, m, dtype=torch.float64)
    which = torch.arange(len(radii)).repeat_interleave(count)
    missing = (radii[which] > 0).nonzero().squeeze(1)
    # larger balls hold the cube too
    proposals = _Proposals(centre.double(), radii.square().clamp(min=torch.finfo(torch.float64).tiny, max=m + 1.0))
    while len(missing) > 0:
        rows = missing[: max(_AT_ONCE // m, 1)]
        delta, accepted = proposals.draw(which[rows], generator)
        found[rows[accepted]] = delta[accepted]
        missing = torch.cat([rows[~accepted], missing[len(rows) :]])
    return found.view(len(radii), count, m)


class _Proposals:
    """Proposals of a rejection sampler.

    Args:
        centre: centre of the balls, (m,) in [0, 1], float64.
        squares: squares of the radii, (E,), positive.
    """

    def __init__(self, centre: Tensor, squares: Tensor) -> None:
        self.low, self.high, self.squares = -centre, 1 - centre, squares
        self.tilts = _tilts(self.low, self.high, squares)
        self.sizes = (2 * self.tilts).rsqrt()  # standard deviation of a pixel without walls
        below, above = ndtr(self.low / self.sizes[:, None]), ndtr(self.high / self.sizes[:, None])
        self.free = self._free_pixels(below, above)
        self.below, self.width = below.masked_fill(self.free, 0.0), (above - below).masked_fill(self.free, 1.0)
        self.halves = 0.5 * self.free.sum(1, dtype=torch.float64)

    def draw(self, which: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A perturbation for each of the radii ``which``, (N, m), and whether it is accepted, bool (N,)."""
        uniform = torch.rand(len(which), len(self.low), generator=generator, dtype=torch.float64)
        chance, part = torch.rand(2, len(which), generator=generator, dtype=torch.float64).clamp(min=2.0**-54)
        uniform = uniform.clamp_(min=2.0**-54)  # 0 would be infinitely far away
        delta = ndtri(self.below[which] + self.width[which] * uniform) * self.sizes[which, None]
        free, halves, squares = self.free[which], self.halves[which], self.squares[which]
        lengths = delta.square()
        rest = lengths.masked_fill(free, 0.0).sum(1)
        accepted = (rest < squares) & (chance.log() < self._log_weight(rest, which))
        radius = (squares - rest).clamp(min=0).sqrt() * part ** (0.5 / halves)
        scale = radius / lengths.masked_fill(~free, 0.0).sum(1).sqrt()
        delta = torch.where(free, self._folded(delta * scale[:, None]), delta)
        return delta, accepted & ((delta >= self.low) & (delta <= self.high)).all(1)

    def _log_weight(self, rest: Tensor, which: Tensor) -> Tensor:
        """Logarithm of the probability (N,) of acceptance, where the pixels that are not free have come so far."""
        halves, squares, tilts = self.halves[which], self.squares[which], self.tilts[which]

        def weight(at: Tensor) -> Tensor:
            return torch.xlogy(halves, squares - at) + tilts * at

        best = (squares - halves / tilts).clamp(min=0.0)
        return weight(torch.minimum(rest, squares)) - weight(best)

    def _folded(self, delta: Tensor) -> Tensor:
        """Perturbations (N, m) on the inner side of the walls that the centre is at."""
        return torch.where(self.low == 0, delta.abs(), torch.where(self.high == 0, -delta.abs(), delta))

    def _free_pixels(self, below: Tensor, above: Tensor) -> Tensor:
        """Which pixels are drawn together, bool (E, m): those of the farthest walls, as many as make most be accepted.

        Args:
            below: probability (E, m) to be below the lower wall.
            above: probability (E, m) to be below the upper wall.
        """
        over = 1 - above
        out = torch.where(self.low == 0, 2 * over, torch.where(self.high == 0, 2 * below, below + over))
        out, order = out.clamp(max=1.0).sort(1)
        m = out.shape[1]
        count = torch.arange(1, m + 1, dtype=torch.float64)
        log_accepted = torch.log1p(-out).cumsum(1) + 0.5 * (count / m).log()
        most, last = log_accepted.max(1)
        chosen = (count - 1 <= last[:, None]) & (most > -0.5 * math.log(math.pi * m))[:, None]
        return torch.zeros_like(chosen).scatter(1, order, chosen)


def _tilts(low: Tensor, high: Tensor, squares: Tensor) -> Tensor:
    """The least lambda (E,) at which the mean squared distance of the tilted pixels is at most the radius', about."""
    least, most = _LEAST / squares, len(low) / (2 * squares)
    for _ in range(20):
        tilts = 0.5 * (least + most)
        above = _mean_square(low, high, tilts) > squares
        least, most = torch.where(above, tilts, least), torch.where(above, most, tilts)
    flat = _mean_square(low, high, _LEAST / squares) <= squares
    return torch.where(flat, _LEAST / squares, most)


def _mean_square(low: Tensor, high: Tensor, tilts: Tensor) -> Tensor:
    """Mean squared distance (E,) of pixels from normal distributions cut at their walls (m,)."""
    sizes = (2 * tilts).rsqrt()[:, None]
    a, b = low / sizes, high / sizes
    ends = a * (-0.5 * a.square()).exp() - b * (-0.5 * b.square()).exp()
    inside = ndtr(b) - ndtr(a)
    squares: Tensor = (1 + ends / (math.sqrt(2 * math.pi) * inside)) * sizes.square()
    return squares.sum(1)
