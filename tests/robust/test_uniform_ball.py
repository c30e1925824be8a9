"""Uniform draws from ball and cube's intersection, in 784 dimensions against closed forms and numeric integration.

Means over draws are compared with exact values in units of their standard error, estimated from the draws: 5 at most,
which happens by chance about once in a million comparisons; and the seeds are fixed.
"""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import kstest

from robust.errors import SettingError
from robust.scores import UniformBall

M = 784


def draws(centre, radius, count, key=0):
    """Perturbations (count, m) of an image (m,)."""
    x = torch.as_tensor(centre, dtype=torch.float64).view(1, 1, 1, -1)
    found = UniformBall(count)(x, torch.tensor([radius], dtype=torch.float64), [key])
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    delta = (found.images[0] - x).flatten(1)
    assert (delta.norm(dim=1) < radius * (1 + 1e-12)).all()
    return delta


def assert_mean(values, expected):
    """The mean of independent values (N,) is the expected one, up to 5 standard errors."""
    error = float(values.std() / math.sqrt(len(values)))
    assert abs(float(values.mean()) - expected) < 5 * error


@pytest.mark.parametrize(("centre", "radius"), [(0.5, 0.4), (0.5, 1e-8), (0.0, 0.9), (1.0, 0.9)])
def test_where_no_wall_is_in_the_way_it_is_the_balls_closed_form(centre, radius):
    """Also where the centre is in a corner: the ball there is folded, not cut."""
    delta = draws([centre] * M, radius, 1000) / radius
    norm = delta.norm(dim=1)
    assert kstest((norm**M).numpy(), "uniform").pvalue > 1e-4
    # of a direction, a coordinate's square has a beta distribution, and its mean length is a ratio of gamma functions
    direction = delta / norm[:, None]
    assert kstest(direction[:, 7].square().numpy(), "beta", (0.5, (M - 1) / 2)).pvalue > 1e-4
    length = math.exp(math.lgamma(M / 2) - math.lgamma((M + 1) / 2)) / math.sqrt(math.pi)
    assert_mean(direction.abs().mean(1), length)
    assert_mean(direction.mean(1), {0.5: 0.0, 0.0: length, 1.0: -length}[centre])
    squares = direction.square().sort(1, descending=True).values
    holding = (squares.cumsum(1) < 0.99).sum(1).double()
    assert abs(float(holding.mean()) - 575) < 3  # pixels that hold 99 % of the squared distance


class Exact:
    """Marginal densities of pixels of a few values, by Fourier inversion of the squared distance's distribution.

    A pixel's density is that of a normal distribution of precision 2 t between its walls, times the weight that the
    other pixels leave: V(r) = integral over u > 0 of exp(-t u) f(r - u), where f is the density of the others' squared
    distance and r what is left of the squared radius. V is the inverse transform of phi(s) / (t - i s).
    """

    def __init__(self, counts, radius):
        self.counts, self.square = counts, radius**2
        self.grids = {value: np.linspace(-value, 1 - value, 10_001) for value in counts}

        def excess(t):
            each = [n * np.average(self.grids[v] ** 2, weights=self._tilted(v, t)) for v, n in counts.items()]
            return sum(each) - self.square

        self.t = brentq(excess, 1e-6, sum(counts.values()) / self.square)
        # the others' squared distance has a standard deviation of some sqrt(m) / t
        self.frequencies = np.linspace(-80, 80, 801) * self.t / math.sqrt(sum(counts.values()))
        self.transforms = {
            v: np.array(
                [np.average(np.exp(1j * s * grid**2), weights=self._tilted(v, self.t)) for s in self.frequencies]
            )
            for v, grid in self.grids.items()
        }

    def _tilted(self, value, t):
        weights = np.exp(-t * self.grids[value] ** 2)
        weights[[0, -1]] /= 2  # trapezoids
        return weights

    def density(self, value):
        """The pixels of that value: a grid of perturbations, and weights that add up to 1."""
        transform = 1 / (self.t - 1j * self.frequencies)
        for other, count in self.counts.items():
            transform = transform * self.transforms[other] ** (count - (other == value))
        grid = self.grids[value]
        left = np.linspace(self.square - max(value, 1 - value) ** 2, self.square, 400)
        weight = (transform * np.exp(-1j * np.outer(left, self.frequencies))).real.sum(1)
        density = self._tilted(value, self.t) * np.interp(self.square - grid**2, left, weight)
        return grid, density / density.sum()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("counts", "radius"),
    [
        ({0.5: M}, 4.0),  # few walls in the way
        ({0.5: M}, 6.5),  # nearly the whole cube
        ({0.2: M}, 5.0),
        ({0.0: 300, 0.5: 250, 0.1: 234}, 3.0),  # pixels at a wall, far from it and near it
        ({0.0: 300, 0.5: 250, 0.1: 234}, 9.0),
    ],
)
def test_cut_by_the_cube_its_marginals_are_the_exact_ones(counts, radius):
    exact = Exact(counts, radius)
    centre = [value for value, count in counts.items() for _ in range(count)]
    parts = dict(zip(counts, draws(centre, radius, 1500).split(list(counts.values()), 1), strict=True))
    for value, delta in parts.items():
        grid, weights = exact.density(value)
        image = value + delta
        assert_mean(delta.mean(1), (grid * weights).sum())  # mean shift
        assert_mean(delta.square().mean(1), (grid**2 * weights).sum())  # mean squared radius
        for low, high in ((0.0, 0.05), (0.8, 1.0)):  # fractions of the pixels near the walls
            near = ((image >= low) & (image <= high)).double().mean(1)
            expected = weights[(value + grid >= low) & (value + grid <= high)].sum()
            if expected > 1e-3:
                assert_mean(near, expected)


def test_in_three_dimensions_it_is_what_rejection_from_the_cube_gives():
    centre, radius = torch.tensor([0.1, 0.5, 1.0]).double(), 0.6
    found = draws(centre, radius, 40_000)
    cube = torch.rand(400_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - centre
    expected = cube[cube.norm(dim=1) < radius]
    for name, statistic in {
        "mean": lambda d: d,
        "squares": lambda d: d.square(),
        "products": lambda d: d * d.roll(1, 1),
        "walls": lambda d: ((d + centre < 0.05) | (d + centre > 0.95)).double(),
        "radius": lambda d: d.norm(dim=1, keepdim=True),
    }.items():
        one, other = statistic(found), statistic(expected)
        error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 5 * error).all(), name


def test_a_ball_that_holds_the_cube_is_the_cube_and_one_of_radius_zero_its_centre():
    assert kstest(draws([0.3] * 30, 100.0, 200).add(0.3).flatten().numpy(), "uniform").pvalue > 1e-4
    x = torch.full((1, 1, 2, 2), 0.3)
    assert torch.equal(UniformBall(5)(x, torch.tensor([0.0]), [0]).images[0], x.expand(5, -1, -1, -1))


def test_draws_depend_on_no_other_image_and_not_on_torchs_generator():
    x, epsilons = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 5.0, 12.0])
    together = UniformBall(7)(x, epsilons, [5, 6, 7])
    torch.manual_seed(99)
    alone = UniformBall(7)(x[1:2], epsilons, [6])
    assert torch.equal(alone.images[0], together.images[1])
    assert alone.inside.shape == (1, 3, 21)
    assert not torch.equal(UniformBall(7)(x[1:2], epsilons, [8]).images, alone.images)


@pytest.mark.parametrize("epsilon", [-0.1, math.nan, math.inf])
def test_wrong_radii(epsilon):
    with pytest.raises(SettingError, match="epsilons: got"):
        UniformBall(2)(torch.full((1, 1, 2, 2), 0.3), torch.tensor([epsilon]), [0])


def test_wrong_images():
    with pytest.raises(SettingError, match=r"images: got 'values from -0.5 to 0.3'; expected values in \[0, 1\]"):
        UniformBall(2)(torch.tensor([[[[0.3, -0.5]]]]), torch.tensor([0.1]), [0])
