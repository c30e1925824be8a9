"""Robustness scores against closed forms and numeric integration."""

import math

import pytest
import torch
from torch import nn

from robust.attacks import FGSMGrid, GrowingPGD, LinearizedBoundary
from robust.errors import SettingError
from robust.metrics import SampledScore
from robust.networks import Autoencoder
from robust.scores import (
    R1,
    R2,
    R3,
    R4,
    FromData,
    OnManifold,
    SameLabel,
    UniformBall,
    area_under_curve,
    basic_measure,
    draw_epsilons,
    margin_curve,
    nearest_boundary,
)

MEANS, DEVIATIONS = (0.35, 0.65), (0.05, 0.15)  # of two Gaussians, equally likely


def density(x):
    """Of the mixture, cut to [0, 1]."""
    each = [torch.distributions.Normal(m, s) for m, s in zip(MEANS, DEVIATIONS, strict=True)]
    inside = sum(0.5 * (n.cdf(torch.tensor(1.0)) - n.cdf(torch.tensor(0.0))) for n in each)
    return sum(0.5 * n.log_prob(x).exp() for n in each) / inside


def bayes(x):
    """The more likely Gaussian, (N,), of points (N, 1, 1, 1): class 0 is an interval, with class 1 on both sides."""
    logs = [torch.distributions.Normal(m, s).log_prob(x) for m, s in zip(MEANS, DEVIATIONS, strict=True)]
    return torch.stack(logs).argmax(0).flatten()


def mixture(count, generator):
    """Points (count, 1, 1, 1) of the mixture in [0, 1]."""
    which = torch.rand(2 * count, generator=generator) < 0.5
    noise = torch.randn(2 * count, generator=generator)
    x = torch.where(which, MEANS[0] + DEVIATIONS[0] * noise, MEANS[1] + DEVIATIONS[1] * noise).double()
    return x[(x >= 0) & (x <= 1)][:count].view(-1, 1, 1, 1)


GRID = torch.linspace(0, 1, 2001, dtype=torch.float64)


def estimated(score, classify, x, epsilons):
    metric = SampledScore(epsilons, score.weight.of_radius(epsilons), math.sqrt(x[0].numel()))
    for first in range(0, len(x), 50):
        keys = list(range(first, min(first + 50, len(x))))
        part = score.points(x[first : first + 50], keys)
        measure, _ = score.measure(classify, part, epsilons, keys)
        metric.update(score.robustness(measure, epsilons))
    return metric.compute()


@pytest.mark.thorough
def test_r1_of_two_gaussians_is_the_integral_of_the_distance_to_the_boundary():
    labels = bayes(GRID)
    walls = GRID[1:][labels[1:] != labels[:-1]]
    assert len(walls) == 2
    epsilons = (torch.arange(15) + 0.5).double() / 15
    x, score = torch.zeros(400, 1, 1, 1).double(), R1(UniformBall(num_samples=100))
    found = estimated(score, bayes, x, epsilons)
    drawn = torch.cat([score.points(x[i : i + 50], list(range(i, i + 50))) for i in range(0, len(x), 50)])
    expected = (drawn.flatten()[:, None] - walls).abs().amin(1).mean()
    assert found["integral"] == pytest.approx(float(expected), rel=0.03)
    assert found["normalized"] == pytest.approx(float(expected), rel=0.03)
    at = (torch.arange(400) + 0.5) / 400  # uniform: Kolmogorov and Smirnov's distance at a level of 1e-6
    assert (drawn.flatten().sort().values - at).abs().amax() < 2.7 / 400**0.5


@pytest.mark.thorough
def test_r2_of_two_gaussians_by_samples_weighs_by_the_density():
    labels = bayes(GRID)
    walls = GRID[1:][labels[1:] != labels[:-1]]
    weights = density(GRID)
    expected = ((GRID[:, None] - walls).abs().amin(1) * weights).sum() / weights.sum()
    x = mixture(500, torch.Generator().manual_seed(0))
    epsilons = (torch.arange(40) + 0.5).double() / 40
    found = estimated(R2(UniformBall(num_samples=60)), bayes, x, epsilons)
    assert found["integral"] == pytest.approx(float(expected), rel=0.05)


def integrated(reward, epsilons):
    """Mean over radii of the integral of H(P(same class in the ball)) p(x) / epsilon^power, on the grid."""
    labels, weights = bayes(GRID), density(GRID)
    values = []
    for epsilon in epsilons:
        near = ((GRID[:, None] - GRID).abs() < epsilon) * weights
        agreeing = (near * (labels[:, None] == labels)).sum(1) / near.sum(1)
        values.append((reward(agreeing, epsilon) * weights).sum() / weights.sum())
    return float(torch.stack(values).mean())


def test_r4_of_two_gaussians_is_the_numeric_integral():
    epsilons = draw_epsilons(15, (1, 1, 1), seed=3)
    generator = torch.Generator().manual_seed(1)
    sampler = FromData(mixture(3000, generator))
    found = estimated(R4(sampler), bayes, mixture(1000, generator), epsilons)
    expected = integrated(lambda p, epsilon: p / epsilon, epsilons)
    assert found["mean"] == pytest.approx(expected, rel=0.02)
    assert found["normalized"] == pytest.approx(expected / float((1 / epsilons).mean()), rel=0.02)


def test_r3_of_two_gaussians_sees_the_worst_of_the_data():
    epsilons = torch.linspace(0.02, 0.5, 20, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    found = estimated(R3(FromData(mixture(3000, generator))), bayes, mixture(1000, generator), epsilons)
    expected = integrated(lambda p, _: (p > 1 - 1e-9).double(), epsilons)
    assert found["mean"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("make", [R1, R2, R3, R4])
def test_a_constant_classifier_has_the_largest_score(make):
    shape = (1, 3, 4)
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    sampler = UniformBall(3) if make in (R1, R2) else FromData(torch.rand(20, *shape))
    epsilons = draw_epsilons(50, shape, seed=0)
    found = estimated(make(sampler), lambda images: torch.zeros(len(images)), x, epsilons)
    assert found["normalized"] == pytest.approx(1)
    expected = float((1 / epsilons).mean()) if make is R4 else 1
    assert found["mean"] == pytest.approx(expected)


def test_the_attacks_give_a_constant_classifier_the_cubes_diameter():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(network[1].weight)
    attacks = {"bg": LinearizedBoundary(), "fgsm": FGSMGrid(), "pgd": GrowingPGD(steps=2)}
    found = nearest_boundary(network, attacks, torch.rand(4, 1, 4, 4))
    assert (found.margin == 4).all()
    assert (found.attack == -1).all()
    assert area_under_curve(found.margin) == pytest.approx(4)


def test_samples_of_the_ball_are_inside_and_uniform():
    """In two dimensions against rejection from the square."""
    x = torch.tensor([[0.1, 0.6]]).view(1, 1, 1, 2)
    epsilons = torch.tensor([0.3, 0.8])
    found = UniformBall(20_000)(x, epsilons, [7])
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    square = torch.rand(400_000, 2, generator=torch.Generator().manual_seed(0))
    for index, epsilon in enumerate(epsilons):
        own = found.images[0, found.inside[0, index]].flatten(1)
        kept = square[(square - x.flatten()).norm(dim=1) < epsilon]
        assert len(own) == 20_000
        assert ((own - x.flatten()).norm(dim=1) <= epsilon + 1e-5).all()
        torch.testing.assert_close(own.mean(0), kept.mean(0), atol=0.005, rtol=0)
        torch.testing.assert_close(own.T.cov(), kept.T.cov(), atol=0.003, rtol=0)


def test_draws_depend_on_the_key_alone():
    torch.manual_seed(0)
    autoencoder = Autoencoder((1, 16, 16), code_size=3, width=2)
    with torch.no_grad():
        autoencoder.decoder[0].weight.mul_(100)
        autoencoder.decoder[-2].weight.mul_(100)
    x = torch.rand(3, 1, 16, 16)
    epsilons = torch.tensor([1.0, 4.0])
    for sampler in (UniformBall(4), OnManifold(autoencoder, num_samples=4)):
        together = sampler(x, epsilons, [5, 6, 7])
        torch.manual_seed(99)
        alone = sampler(x[1:2], epsilons, [6])
        torch.testing.assert_close(alone.images[0], together.images[1])
        assert not torch.allclose(sampler(x[1:2], epsilons, [8]).images, alone.images)


def test_on_the_manifold_samples_are_decoded_noisy_codes():
    torch.manual_seed(0)
    autoencoder = Autoencoder((1, 16, 16), code_size=3, width=2).train()
    with torch.no_grad():
        autoencoder.decoder[-2].weight.mul_(100)  # an image that is not grey all over
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    x = torch.rand(2, 1, 16, 16)
    found = OnManifold(autoencoder, sigma=0.5, num_samples=500)(x, torch.tensor([0.01, 8.0, 20.0]), [1, 2])
    noise = (found.codes - autoencoder.encode(x)[:, None]) / 0.5
    assert noise.mean().abs() < 0.05
    assert noise.std() == pytest.approx(1, abs=0.05)
    expected = autoencoder.decode(found.codes.flatten(0, 1)).view(2, 500, 1, 16, 16)
    torch.testing.assert_close(found.images, expected)
    distance = (found.images - x[:, None]).flatten(2).norm(dim=2)
    assert torch.equal(found.inside[:, 1], distance < 8.0)
    assert not found.inside[:, 0].any()
    assert found.inside[:, 2].all()
    for name, value in autoencoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in autoencoder.parameters())


def test_an_empty_ball_counts_as_robust():
    agrees = torch.tensor([[True, False, True]])
    inside = torch.tensor([[[False, False, False], [True, True, False], [True, False, True]]])
    assert basic_measure(agrees, inside).tolist() == [[1.0, 0.5, 1.0]]


def test_label_aware_scores_ignore_neighbours_of_another_label():
    x = mixture(50, torch.Generator().manual_seed(0))
    sampler = FromData(mixture(500, torch.Generator().manual_seed(1)))
    epsilons = torch.tensor([0.2, 0.5]).double()
    aware = estimated(R3(SameLabel(sampler, bayes)), bayes, x, epsilons)
    blind = estimated(R3(sampler), bayes, x, epsilons)
    assert aware["mean"] == 1  # a classifier that is right everywhere
    assert blind["mean"] < 0.9
    found = SameLabel(sampler, bayes)(x, epsilons, list(range(50)))
    near = (x.view(-1, 1) - sampler.images.view(1, -1)).abs() < 0.2
    assert torch.equal(found.inside[:, 0], near & (bayes(x)[:, None] == bayes(sampler.images)))


def test_area_under_the_curve_is_the_mean_margin():
    generator = torch.Generator().manual_seed(0)
    margins = torch.rand(1001, generator=generator) * 3
    margins[:100] = margins[100:200]  # equal ones
    assert area_under_curve(margins) == pytest.approx(float(margins.double().mean()), abs=1e-6)
    fine = torch.linspace(0, 3, 20_001, dtype=torch.float64)
    by_hand = torch.tensor([float((margins > epsilon).double().mean()) for epsilon in fine[::2000]])
    torch.testing.assert_close(margin_curve(margins, fine)[::2000], by_hand.double())
    assert torch.trapezoid(margin_curve(margins, fine), fine) == pytest.approx(float(margins.mean()), abs=1e-3)


def test_radii_are_uniform_up_to_the_diameter_and_belong_to_the_seed():
    epsilons = draw_epsilons(20_000, (1, 28, 28), seed=1)
    assert torch.equal(epsilons, draw_epsilons(20_000, (1, 28, 28), seed=1))
    assert not torch.equal(epsilons, draw_epsilons(20_000, (1, 28, 28), seed=2))
    torch.testing.assert_close(epsilons, 28 * (torch.arange(20_000).double() + 0.5) / 20_000, atol=0.4, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformBall(num_samples=0), "num_samples: got 0"),
        (lambda: OnManifold(Autoencoder((1, 16, 16), 2, 2), sigma=0), "sigma: got 0"),
        (lambda: OnManifold(Autoencoder((1, 16, 16), 2, 2), num_samples=0), "num_samples: got 0"),
        (lambda: OnManifold(Autoencoder((1, 16, 16), 2, 2), "absent.ckpt"), "checkpoint: got 'absent.ckpt'; no such"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(SettingError, match=message):
        make()
