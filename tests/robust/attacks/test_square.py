"""Square: its moves against the algorithms in plain loops, its queries, and what it finds on linear networks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.attacks import Square
from robust.attacks._square_moves import BallMoves, BoxMoves
from robust.attacks.square import _HALVINGS
from robust.errors import SettingError
from robust.losses import margin
from robust.random import numbered
from robust.threat_models import L1Ball, L2Ball, LinfBall

BALLS = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}


def norm(values, power):
    return sum(abs(float(value)) ** power for value in values) ** (1 / power)


def plain_peaks(side, power, transposed):
    """Eq. 2 of Andriushchenko et al. ring by ring, each half of norm 1; with the fourth power of l1-AutoAttack."""
    cells = torch.zeros(side, side, dtype=torch.float64)
    first = 0
    for height, sign in ((side // 2, 1), (side - side // 2, -1)):
        half = torch.zeros(height, side, dtype=torch.float64)
        for k in range(max(height, side) // 2 + 1):
            top, left = height // 2 - k, side // 2 - k
            half[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += (k + 1.0) ** (-2 * (3 - power))
        if height:
            cells[first : first + height] = sign * half / norm(half.flatten(), power)
        first += height
    cells = cells / norm(cells.flatten(), power)
    return cells.T if transposed else cells


def plain_move(x, delta, epsilon, power, side, draws):
    """Algorithm 3 for one image (C, H, W): the windows as slices, channel by channel."""
    channels, height, width = x.shape
    top, left, other_top, other_left = (
        int(draw * (size - side + 1))
        for draw, size in zip(draws[:4].tolist(), (height, width, height, width), strict=True)
    )
    first = (slice(top, top + side), slice(left, left + side))
    second = (slice(other_top, other_top + side), slice(other_left, other_left + side))
    unused = max(epsilon**power - norm(delta.flatten(), power) ** power, 0.0)
    peaks, moved = plain_peaks(side, power, bool(draws[4] < 0.5)), delta.clone()
    for channel in range(channels):
        both = torch.zeros(height, width, dtype=torch.bool)
        both[first] = both[second] = True
        available = unused / channels + norm(delta[channel][both], power) ** power
        old = delta[channel][first]
        sign = -1.0 if draws[5 + channel] < 0.5 else 1.0
        new = sign * peaks + old / max(norm(old.flatten(), power), 1e-30)
        scale = (available * (channels if power == 1 else 1)) ** (1 / power)
        moved[channel][second] = 0.0
        moved[channel][first] = new / norm(new.flatten(), power) * scale
    if power == 1:
        return L1Ball(epsilon).project((x + moved)[None], x[None])[0]
    return (x + epsilon * moved / norm(moved.flatten(), 2)).clamp(0, 1)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6), st.sampled_from([1, 2]), st.integers(1, 3), st.integers(2, 8), st.integers(2, 8),
    st.sampled_from([0.05, 0.3, 1.0]),
)  # fmt: skip
def test_a_move_in_a_ball_is_that_of_the_paper(seed, power, channels, height, width, area):
    torch.manual_seed(seed)
    epsilon = 0.1 + 2 * float(torch.rand(()))
    ball = (L2Ball if power == 2 else L1Ball)(epsilon)
    x = torch.rand(1, channels, height, width, dtype=torch.float64)
    best = ball.sample(x)
    torch.manual_seed(seed)
    moved = BallMoves(ball).move(x, best, torch.zeros(1, dtype=torch.long), area)
    torch.manual_seed(seed)
    draws = torch.rand(1, 5 + channels, dtype=torch.float64)[0]
    side = max(round(math.sqrt(area * height * width)), 3)
    side = min(side + (side % 2 == 0), height, width)
    expected = plain_move(x[0], (best - x)[0], epsilon, power, side, draws)
    torch.testing.assert_close(moved[0], expected, rtol=0, atol=1e-6)
    assert ball.contains(moved, x).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(["l2", "l1"]), st.integers(1, 12), st.integers(1, 12))
def test_a_start_in_a_ball_is_on_its_surface(seed, kind, height, width):
    torch.manual_seed(seed)
    x, ball = torch.full((3, 2, height, width), 0.5), BALLS[kind](0.4)
    delta = (BallMoves(ball).start(x) - x).flatten(1)
    torch.testing.assert_close(torch.linalg.vector_norm(delta, 2 if kind == "l2" else 1, 1), torch.full((3,), 0.4))


def test_squares_shrink():
    x, attack = torch.full((500, 1, 10, 12), 0.5), Square()
    moves, every = BoxMoves(LinfBall(0.1), x), torch.arange(500)
    masks = [
        moves.move(x, x, every, attack._area(query)) != x for query in (1, *(halving + 1 for halving in _HALVINGS))
    ]
    areas = [mask.sum((1, 2, 3)) for mask in masks]
    assert all((area == area[0]).all() for area in areas)
    sides = [math.isqrt(int(area[0])) for area in areas]
    assert sides == [max(round((0.8 * 0.5**halvings * 120) ** 0.5), 1) for halvings in range(10)]
    assert masks[-1].any(0).float().mean() > 0.9  # all over the image: 0.985 of the pixels, on average


def linear(classes=3):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).double(), torch.rand(12, 1, 8, 8).double()
    return network, x, network(x).argmax(1)


@pytest.mark.parametrize("kind", BALLS)
def test_more_queries_are_never_worse(kind):
    """The first queries are the same, and what they find is kept."""
    network, x, y = linear()
    ball, reached = BALLS[kind]({"linf": 0.02, "l2": 0.1, "l1": 0.5}[kind]), []
    for queries in (1, 5, 20, 60):
        with numbered((0,), range(len(x))):
            reached.append(margin(network(Square(queries)(network, ball, x, y)), y))
    for fewer, more in zip([margin(network(x), y), *reached], reached, strict=False):
        assert (more >= fewer).all()
    assert (reached[-1] > reached[0]).all()


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", BALLS)
def test_queries_are_counted(kind, samples):
    """Each example is seen once as it is, then once a query until it is misclassified in one pass, or in all passes."""
    network, x, y = linear()
    y = y.clone()
    y[0] = (y[0] + 1) % 3
    seen = []
    network.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    Square(7, num_samples=samples)(network, BALLS[kind](1e-6), x, y)
    assert seen == samples * [12] + 7 * samples * [11 if samples == 1 else 12]


@pytest.mark.parametrize("kind", BALLS)
def test_it_crosses_the_planes_that_are_near(kind):
    """Away from the ends of [0, 1] the distance to a plane is known; half of it is reached without any gradient."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(25, 2)).double(), 0.4 + 0.2 * torch.rand(20, 1, 5, 5).double()
    network.requires_grad_(False)
    w = network[1].weight[1] - network[1].weight[0]
    network[1].bias.copy_(-network[1].weight @ x.flatten(1).mean(0))  # it goes through the middle of the images
    y = network(x).argmax(1)
    distance = -margin(network(x), y) / {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[kind]
    radius = 0.7 * float(distance.max())
    broken = network(Square(300)(network, BALLS[kind](radius), x, y)).argmax(1) != y
    assert 0 < (distance <= radius / 2).sum() < (distance <= radius).sum() < 20
    assert broken[distance <= radius / 2].all()
    assert not broken[distance > radius].any()


def test_other_threat_models_are_refused():
    class Own(L2Ball):
        norm = "own"

    network, x, y = linear()
    with pytest.raises(SettingError, match=r"^threat_model: got 'Own'; take APGD: Square searches boxes, l2 and l1"):
        Square(2)(network, Own(0.1), x, y)
