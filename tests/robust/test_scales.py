"""No result depends on the scale of logits, noise, images or budgets: from 1e-10 to 1e10."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.attacks import APGD, PGD, LinearizedBoundary
from robust.losses import dlr, targeted_dlr
from robust.noise_fitting import fit_l1, fit_l2
from robust.scores import nearest_boundary
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox
from robust.threat_models.balls import unblocked

POWERS = st.integers(-10, 10)
scales = pytest.mark.parametrize("scale", [1e-10, 1e-6, 1e-3, 1e3, 1e6, 1e10])


class Scaled(nn.Module):
    """Logits of a random network of an odd shape, times a number."""

    def __init__(self, seed, scale, classes=5):
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Conv2d(2, 3, (2, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(36, classes)).double()
        self.scale = scale

    def forward(self, x):
        return self.scale * self.network(x)


def images(seed, count=4):
    return torch.rand(count, 2, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def asymmetric_box(seed, size):
    """Per-pixel budgets, some of them zero."""
    generator = torch.Generator().manual_seed(seed + 1)
    return PixelBox(size * (torch.rand(1, 2, 5, 5, generator=generator, dtype=torch.float64) - 0.2).clamp(min=0))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), POWERS, st.sampled_from(["linf", "box", "l2", "l1"]), st.sampled_from(["margin", "dlr"]))
def test_attacks_find_the_same_image_at_every_scale_of_the_logits(seed, power, kind, loss):
    x = images(seed)
    ball = {"linf": LinfBall(0.1), "box": asymmetric_box(seed, 0.3), "l2": L2Ball(0.5), "l1": L1Ball(2.0)}[kind]
    y = Scaled(seed, 1.0)(x).argmax(1)
    expected = PGD(5, start="clean", loss=loss)(Scaled(seed, 1.0), ball, x, y)
    found = PGD(5, start="clean", loss=loss)(Scaled(seed, 2.0 ** (power * 3)), ball, x, y)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert ball.contains(found, x).all()
    assert (found != x).any()


@scales
def test_the_ratio_of_logits_has_no_scale(scale):
    logits, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).double(), torch.arange(8) % 6
    torch.testing.assert_close(dlr(scale * logits, y), dlr(logits, y))
    target = (y + 1) % 6
    torch.testing.assert_close(targeted_dlr(scale * logits, y, target), targeted_dlr(logits, y, target))


def test_the_ratio_of_logits_that_tie_has_a_finite_gradient():
    logits = torch.zeros(3, 5, requires_grad=True)
    (dlr(logits, torch.arange(3)) + targeted_dlr(logits, torch.arange(3), torch.arange(3) + 1)).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.any(1).all()


@scales
def test_the_linearised_boundary_is_as_far_at_every_scale_of_the_logits(scale):
    x = images(3, 20)
    attacks = {"bg": LinearizedBoundary(tolerance=1e-5)}
    expected, found = (nearest_boundary(Scaled(7, size), attacks, x) for size in (1.0, scale))
    assert torch.equal(found.attack, expected.attack)
    assert (expected.attack == 0).all()
    torch.testing.assert_close(found.margin, expected.margin, atol=1e-4, rtol=0)


@scales
def test_apgd_breaks_the_same_at_every_scale_of_the_logits(scale):
    """Of a linear network it is known: the margin falls by epsilon times the l1 norm of the weights."""
    torch.manual_seed(0)
    linear = nn.Linear(25, 2).double()
    x = 0.3 + 0.4 * torch.rand(40, 1, 5, 5, dtype=torch.float64)
    difference = linear.weight[1] - linear.weight[0]
    logits = linear(x.flatten(1))
    y, gap = logits.argmax(1), (logits[:, 0] - logits[:, 1]).abs()
    reach = 0.05 * difference.abs().sum()
    assert 5 < int((gap < reach).sum()) < 35
    with torch.no_grad():
        linear.weight *= scale
        linear.bias *= scale
    network = nn.Sequential(nn.Flatten(), linear)
    broken = network(APGD(20, loss="margin")(network, LinfBall(0.05), x, y)).argmax(1) != y
    assert torch.equal(broken[(gap / reach - 1).abs() > 1e-3], (gap < reach)[(gap / reach - 1).abs() > 1e-3])


@pytest.mark.filterwarnings("ignore:images. no value exceeds 1/255")  # that is the point
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(-10, 0), st.sampled_from(["linf", "box", "l2", "l1"]))
def test_projections_and_verdicts_scale_with_image_and_radius(seed, power, kind):
    """Near the corner of black images, where no upper wall is in the way, everything is proportional."""
    scale = 2.0 ** (power * 3)
    torch.manual_seed(seed)
    x, step = 0.2 * images(seed), torch.randn(4, 2, 5, 5, dtype=torch.float64)
    step = step.abs() * torch.where(step > 0, 0.3, -0.3)

    def ball(size):
        kinds = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}
        return kinds[kind](size) if kind in kinds else asymmetric_box(seed, size)

    expected = ball(0.1).project(x + step, x)
    found = ball(0.1 * scale).project(scale * (x + step), scale * x)
    torch.testing.assert_close(found / scale, expected, atol=1e-6, rtol=0)
    assert ball(0.1 * scale).contains(found, scale * x).all()
    beyond = scale * (x + 1.01 * (expected - x)).clamp(min=0)
    outside = beyond != found
    assert not ball(0.1 * scale).contains(beyond, scale * x)[outside.flatten(1).any(1)].any()


@pytest.mark.parametrize("ball", [LinfBall(1e-8), L2Ball(1e-8), L1Ball(1e-8), PixelBox(torch.full((1, 1, 9, 9), 1e-8))])
def test_a_small_ball_does_not_contain_what_is_twice_as_far(ball):
    """In float32: the slack is that of rounding, not a millionth, and none where the image is black."""
    x = torch.zeros(2, 1, 9, 9)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0], x_adv[1, 0, 0, 0] = 1e-8, 2e-8
    assert ball.contains(x_adv, x).tolist() == [True, False]


@pytest.mark.parametrize(("kind", "size"), [(LinfBall, 0.1), (L2Ball, 2.0), (L1Ball, 50.0)])
def test_rounding_puts_nothing_outside(kind, size):
    """Images of 3072 pixels, in float32, each pixel moved."""
    torch.manual_seed(0)
    x, ball = torch.rand(16, 3, 32, 32), kind(size)
    for far in (1e-3, 1.0, 100.0):
        assert ball.contains(ball.project(x + far * torch.randn_like(x), x), x).all()
    assert ball.contains(ball.sample(x), x).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(-10, 10), st.sampled_from([1e-8, 1e-3, 0.5, 3.0]))
def test_noise_is_fitted_in_l2_alike_whatever_its_size(seed, power, epsilon):
    torch.manual_seed(seed)
    x, noise = images(seed), torch.randn(4, 2, 5, 5, dtype=torch.float64)
    expected = fit_l2(x, noise, epsilon)
    found = fit_l2(x, 10.0**power * noise, epsilon)
    torch.testing.assert_close(found - x, expected - x, rtol=1e-6, atol=1e-15)
    attainable = torch.where(noise > 0, 1 - x, x).flatten(1).norm(dim=1) > epsilon
    torch.testing.assert_close(
        (found - x).flatten(1).norm(dim=1)[attainable] / epsilon, torch.ones(4).double()[attainable], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("power", [-10, -3, 0, 3, 10])
def test_the_gradient_through_fitted_noise_is_that_of_differences(power):
    torch.manual_seed(0)
    x = images(0, 1)
    noise = (10.0**power * torch.randn(1, 2, 5, 5, dtype=torch.float64)).requires_grad_()
    direction = torch.randn_like(x)

    def value(z):
        return (direction * fit_l2(x, z, 0.5)).sum()

    (gradient,) = torch.autograd.grad(value(noise), noise)
    step = 1e-6 * 10.0**power * torch.randn_like(x)
    difference = (value(noise.detach() + step) - value(noise.detach() - step)) / 2
    assert float((gradient * step).sum()) == pytest.approx(float(difference), rel=1e-4)


@pytest.mark.parametrize("epsilon", [1e-9, 1e-6, 1e-3, 1.0])
def test_gradients_reach_the_noise_in_small_l1_balls(epsilon):
    x = torch.full((1, 1, 3, 3), 0.5, dtype=torch.float64)
    noise = torch.linspace(1, 2, 9, dtype=torch.float64).view(1, 1, 3, 3).mul(epsilon).requires_grad_()
    fitted = fit_l1(x, noise, epsilon)
    (gradient,) = torch.autograd.grad(fitted.flatten()[-1], noise)
    free = int((fitted != x).sum())
    assert free > 1
    assert float(gradient.flatten()[-1]) == pytest.approx(1 - 1 / free)


def test_only_pixels_at_the_end_of_their_range_are_blocked():
    for kind in (torch.float32, torch.float64):
        near = 1 - torch.finfo(kind).eps
        x = torch.tensor([0.0, 0.0, 1e-12, 1.0, 1.0, near, 1 - 1e-5], dtype=kind).view(1, 1, 1, -1)
        gradient = torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0], dtype=kind).view(1, 1, 1, -1)
        assert unblocked(gradient, x).flatten().tolist() == [0, 1, -1, 0, -1, 0, 1]
