"""The attacks that look for the boundary: against closed forms and bisection."""

import pytest
import torch
from torch import nn

from robust.attacks import BoxedHalfspace, FGSMGrid, GrowingPGD, LatentAttack, LinearizedBoundary, to_boundary
from robust.errors import InvalidAttackError, SettingError
from robust.scores import nearest_boundary

ATTACKS = {"bg": LinearizedBoundary(), "fgsm": FGSMGrid(), "pgd": GrowingPGD(steps=10)}


def linear(classes, pixels, scale=1.0):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    nn.init.normal_(network[1].weight, std=scale)
    return network


def images(count, side, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def curved(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, classes)).eval()


def smallest_step(v, b, x):
    """The smallest z with v z <= b < 0 and x + z in [0, 1], all (d,): clip(-m v) for the least m, by bisection."""

    def step(m):
        return (-m * v).clamp(-x, 1 - x)

    low, high = 0.0, 1.0
    while v @ step(high) > b:
        low, high = high, 2 * high
        assert high < 1e12, "there is none"
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if v @ step(middle) > b else (low, middle)
    return step(high)


@pytest.mark.parametrize("seed", range(20))
def test_the_halfspace_problem_against_bisection(seed):
    generator = torch.Generator().manual_seed(seed)
    d = 8
    v = torch.randn(3, d, generator=generator).double()
    v[:, 0] = 0
    x = torch.rand(3, d, generator=generator).double()
    x[:, 1], x[:, 2] = 0, 1  # at their walls
    least = torch.minimum(-v * x, v * (1 - x)).sum(1)
    b = torch.tensor([0.05, 0.5, 0.95]).double() * least
    found, feasible = BoxedHalfspace(v, x).solve(b, torch.arange(3))
    assert feasible.all()
    for k in range(3):
        torch.testing.assert_close(found[k], smallest_step(v[k], b[k], x[k]), atol=1e-9, rtol=0)
        assert float(v[k] @ found[k] - b[k]) == pytest.approx(0, abs=1e-12)
        assert ((x[k] + found[k] >= 0) & (x[k] + found[k] <= 1)).all()


def test_a_halfspace_beyond_the_box_is_said_to_be_so():
    v, x = torch.ones(1, 4).double(), torch.full((1, 4), 0.25).double()
    found, feasible = BoxedHalfspace(v, x).solve(torch.tensor([-1.01]), torch.tensor([0]))
    assert not feasible.any()
    assert torch.equal(x + found, torch.zeros(1, 4).double())


def true_margins(network, x):
    """To the nearest of the hyperplanes between the predicted class and the others, the box being out of reach."""
    logits, weight = network(x).detach(), network[1].weight.detach()
    y = logits.argmax(1)
    gap = logits.gather(1, y[:, None]) - logits
    return (gap / (weight[y][:, None] - weight).norm(dim=2)).nan_to_num(torch.inf).amin(1)


def test_bg_alone_gives_a_linear_classifiers_margin_to_a_thousandth():
    network, x = linear(5, 100), images(200, 10, 0.4, 0.6)
    expected = true_margins(network, x)
    found = nearest_boundary(network, {"bg": ATTACKS["bg"]}, x)
    assert found.margin.mean() == pytest.approx(float(expected.mean()), rel=1e-3)
    closer = nearest_boundary(network, {"bg": LinearizedBoundary(tolerance=1e-5)}, x)
    torch.testing.assert_close(closer.margin, expected, rtol=1e-3, atol=1e-6)


def test_r2_of_a_linear_classifier_is_its_margin_to_a_hundredth():
    network, x = linear(5, 100), images(200, 10, 0.4, 0.6)
    found = nearest_boundary(network, ATTACKS, x)
    assert found.margin.mean() == pytest.approx(float(true_margins(network, x).mean()), rel=0.01)
    assert (found.margin <= found.distances.amin(1)).all()
    assert torch.equal(found.margin, found.distances.gather(1, found.attack[:, None]).squeeze(1))


def test_bg_in_the_box_is_the_quadratic_programs_solution():
    """A linear classifier of two classes, in images of black and white pixels, where walls are in the way."""
    network = linear(2, 9)
    x = images(30, 3).round()
    found = nearest_boundary(network, {"bg": LinearizedBoundary(tolerance=1e-5)}, x)
    weight, bias = network[1].weight.detach().double(), network[1].bias.detach().double()
    for image, margin, attack in zip(x.double().flatten(1), found.margin, found.attack, strict=True):
        logits = weight @ image + bias
        y = int(logits.argmax())
        v, b = weight[y] - weight[1 - y], logits[1 - y] - logits[y]
        least = torch.minimum(-v * image, v * (1 - image)).sum()
        assert bool(least < b) == (attack == 0)
        if least < b:
            assert float(margin) == pytest.approx(float(smallest_step(v, b, image).norm()), rel=1e-3)
    assert (found.attack == 0).sum() > 10


@pytest.mark.parametrize("name", ATTACKS)
def test_every_point_flips_and_is_an_image(name):
    network, x = curved(), images(60, 6)
    y = network(x).argmax(1)
    found = ATTACKS[name](network, x, y)
    assert found.min() >= 0
    assert found.max() <= 1
    flipped = network(found).argmax(1) != y
    assert flipped.float().mean() > 0.5
    assert torch.equal(found[~flipped], x[~flipped])
    points, distance = to_boundary(network, x, found, y)
    assert torch.equal(distance.isinf(), ~flipped)
    assert (network(points).argmax(1) != y)[flipped].all()
    before = torch.lerp(x, points, 0.9999)
    assert (network(before).argmax(1) == y).all()  # just before the boundary it is the image's class still
    assert (distance[flipped] <= (found - x).flatten(1).norm(dim=1)[flipped] + 1e-6).all()


def test_bg_gives_up_no_target_too_early():
    """Against the search for each target class alone, in a network of the two classes."""
    network, x = curved(), images(16, 6)
    attack = LinearizedBoundary(tolerance=1e-3)
    y = network(x).argmax(1)
    together = (attack(network, x, y) - x).flatten(1).norm(dim=1)

    class Two(nn.Module):
        def __init__(self, image, target):
            super().__init__()
            self.own, self.target = image, target

        def forward(self, at):
            logits = network(at)
            others = torch.full_like(logits, -1e9)
            others[:, [self.own, self.target]] = logits[:, [self.own, self.target]]
            return others

    for index in range(len(x)):
        alone = []
        for target in set(range(4)) - {int(y[index])}:
            at = attack(Two(int(y[index]), target), x[index : index + 1], y[index : index + 1])
            if network(at).argmax(1) != y[index]:
                alone.append(float((at - x[index]).norm()))
        if alone:
            assert float(together[index]) <= min(alone) + 2e-3


def test_a_point_that_keeps_its_class_is_an_error(monkeypatch):
    network, x = curved(), images(5, 6)
    monkeypatch.setattr("robust.scores.margins.to_boundary", lambda f, x, found, y, n: (x, torch.ones(len(x))))
    with pytest.raises(InvalidAttackError, match="invalid attack bg: 5 of 5 images keep their class"):
        nearest_boundary(network, {"bg": ATTACKS["bg"]}, x)


def test_modes_gradients_and_inference_mode_are_left_alone():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.inference_mode():
        found = nearest_boundary(network, ATTACKS, images(4, 6))
    assert found.margin.isfinite().all()
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_latent_attack_stays_in_ball_and_range_and_ascends():
    torch.manual_seed(0)
    network, decoder = linear(4, 36), nn.Sequential(nn.Linear(3, 36), nn.Sigmoid(), nn.Unflatten(1, (1, 6, 6)))
    codes = torch.randn(50, 3)
    y = network(decoder(codes)).argmax(1)
    low, high = codes.amin(0), codes.amax(0) - 0.01
    codes = codes.clamp(low, high)
    found = LatentAttack(0.5, 20, 0.05)(network, decoder, codes, y, low, high)
    assert ((found - codes).abs() <= 0.5 + 1e-6).all()
    assert ((found >= low) & (found <= high)).all()

    def loss(z):
        return nn.functional.cross_entropy(network(decoder(z)), y, reduction="none")

    assert (loss(found) >= loss(codes) - 1e-4).float().mean() > 0.95
    assert loss(found).mean() > 1.15 * loss(codes).mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearizedBoundary(growth=1), "growth: got 1"),
        (lambda: LinearizedBoundary(flat_growth=1), "flat_growth: got 1"),
        (lambda: LinearizedBoundary(tries=0), "tries: got 0"),
        (lambda: LinearizedBoundary(tolerance=0), "tolerance: got 0"),
        (lambda: FGSMGrid([0.2, 0.1]), r"epsilons: got \[0.2, 0.1\]; give rising"),
        (lambda: FGSMGrid([]), "epsilons"),
        (lambda: GrowingPGD(0), "first_radius: got 0"),
        (lambda: GrowingPGD(steps=0), "steps: got 0"),
        (lambda: LatentAttack(epsilon=0), "epsilon: got 0"),
        (lambda: LatentAttack(steps=0), "steps: got 0"),
        (lambda: LatentAttack(learning_rate=0), "learning_rate: got 0"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(SettingError, match=message):
        make()
