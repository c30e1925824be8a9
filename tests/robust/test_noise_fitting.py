"""Noise fitted to norm balls: exact norms against reference solvers, and gradients."""

import pytest
import torch
from scipy.optimize import brentq

from robust.noise_fitting import fit_l1, fit_l2, fit_linf
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox


def images(count=8, shape=(3, 32, 32), dtype=torch.float32):
    """Grey ones, black and white ones, one black and one white."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, *shape, generator=generator, dtype=dtype)
    x[0], x[1], x[2] = x[0].round(), 0.0, 1.0
    return x, torch.randn(x.shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("epsilon", [0.001, 80 / 255, 128 / 255, 3.0, 15.0])
def test_l2_meets_its_norm(epsilon):
    x, noise = images()
    fitted = fit_l2(x, noise, epsilon)
    assert fitted.min() >= 0
    assert fitted.max() <= 1
    torch.testing.assert_close((fitted - x).flatten(1).norm(dim=1), torch.full((8,), epsilon), atol=1e-5, rtol=1e-5)
    assert L2Ball(epsilon).contains(fitted, x).all()


def test_l2_agrees_with_a_root_finder():
    x, noise = images(shape=(1, 5, 5), dtype=torch.float64)
    for index in range(len(x)):
        image, direction = x[index : index + 1], noise[index : index + 1]

        def excess(multiple, image=image, direction=direction):
            return (((image + multiple * direction).clamp(0, 1) - image).norm() - 1.3).item()

        multiple = brentq(excess, 0, 100, xtol=1e-14)
        expected = (image + multiple * direction).clamp(0, 1)
        torch.testing.assert_close(fit_l2(image, direction, 1.3), expected, atol=1e-9, rtol=0)


def test_l2_uses_all_the_room_where_the_budget_is_larger():
    x, noise = images()
    expected = torch.where(noise >= 0, 1.0, 0.0)
    torch.testing.assert_close(fit_l2(x, noise, 100.0), expected, atol=1e-5, rtol=0)
    assert torch.equal(fit_l2(x, torch.zeros_like(x), 1.0), x), "no noise, no direction"


@pytest.mark.parametrize("epsilon", [0.05, 2.0, 2000 / 255, 60.0])
def test_l1_is_the_projection(epsilon):
    """The soft-thresholded noise cut to [0, 1], with the threshold of a root finder."""
    x, noise = images(shape=(1, 10, 10), dtype=torch.float64)
    fitted = fit_l1(x, noise, epsilon)
    assert L1Ball(epsilon).contains(fitted, x).all()
    for index in range(len(x)):
        image, entries = x[index], noise[index]

        def moved(threshold, image=image, entries=entries):
            return (image + entries.sign() * (entries.abs() - threshold).clamp(min=0)).clamp(0, 1)

        def excess(threshold, image=image, moved=moved):
            return ((moved(threshold) - image).abs().sum() - epsilon).item()

        threshold = brentq(excess, 0, 10, xtol=1e-14) if excess(0) > 0 else 0
        torch.testing.assert_close(fitted[index], moved(threshold), atol=1e-5, rtol=0)


def test_l1_leaves_small_noise_as_it_is():
    x, noise = images(shape=(1, 4, 4))
    small = 0.001 * noise
    torch.testing.assert_close(fit_l1(x, small, 1.0), (x + small).clamp(0, 1))


@pytest.mark.parametrize("fit", ["tanh", "clip", "straight_through"])
def test_linf_is_in_the_ball(fit):
    x, noise = images()
    assert LinfBall(0.03).contains(fit_linf(x, noise, 0.03, fit), x).all()
    if fit != "tanh":
        torch.testing.assert_close(fit_linf(x, noise, 0.03, fit), (x + noise.clamp(-0.03, 0.03)).clamp(0, 1))


def test_clipping_kills_the_gradient_that_the_other_fits_pass():
    x, noise = torch.full((4, 3, 16, 16), 0.5), torch.randn(4, 3, 16, 16).requires_grad_()
    passed = {}
    for fit in ("tanh", "clip", "straight_through"):
        (gradient,) = torch.autograd.grad(fit_linf(x, noise, 8 / 255, fit).sum(), noise)
        passed[fit] = (gradient != 0).float().mean().item()
    assert passed["tanh"] == passed["straight_through"] == 1
    assert passed["clip"] < 0.05


@pytest.mark.parametrize("epsilon", [0.05, 0.4, 0.9, 1.3, 5.0])
@pytest.mark.parametrize("fit", [fit_l2, fit_l1])
def test_gradients_are_those_of_the_fitted_image(fit, epsilon):
    torch.manual_seed(0)
    x = torch.rand(3, 1, 3, 3, dtype=torch.float64)
    x[0, 0, 0] = torch.tensor([0, 1, 0.5])
    noise = torch.randn_like(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda noise: fit(x, noise, epsilon), noise)


def test_the_ball_chooses_the_fit():
    x, noise = images()
    assert torch.equal(LinfBall(0.1).fit_noise(x, noise, "clip"), fit_linf(x, noise, 0.1, "clip"))
    assert torch.equal(L2Ball(1.0).fit_noise(x, noise), fit_l2(x, noise, 1.0))
    assert torch.equal(L1Ball(1.0).fit_noise(x, noise), fit_l1(x, noise, 1.0))
    with pytest.raises(TypeError, match="PixelBox"):
        PixelBox(torch.ones_like(x)).fit_noise(x, noise)
