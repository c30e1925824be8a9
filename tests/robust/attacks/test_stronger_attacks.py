"""APGD, Square and Carlini-Wagner: against pyautoattack's at equal settings, PGD, and closed forms."""

import warnings

import pytest
import torch
from torch import nn

from robust.attacks import APGD, PGD, BoxedHalfspace, CarliniWagnerL2, Square
from robust.errors import SettingError
from robust.losses import margin
from robust.random import numbered
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox, ball

BALLS = {"Linf": LinfBall(0.13), "L2": L2Ball(1.5), "L1": L1Ball(10.0)}
# Of the 150 images, the count that an attack leaves varies from seed to seed by a std of at most 1.3 (in L1 2.2, and
# Square's 2.8). Margins below are three of the difference's, in percent: accuracies are not compared more closely.
MARGINS = {"Linf": 3.0, "L2": 3.0, "L1": 6.0, "Square": 7.0}


@pytest.fixture
def reference(trained):
    """Accuracy in percent that one of pyautoattack's attacks leaves."""

    def measure(kind, norm, **settings):
        network, x, y = trained
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")  # zero gradients of correct and saturated examples
            x_adv = kind(network, norm=norm, eps=BALLS[norm].epsilon, device="cpu", **settings).perturb(x, y)
        network.zero_grad()
        return 100 * (network(x_adv).argmax(1) == y).float().mean().item()

    return measure


@pytest.mark.thorough
@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_apgd_is_as_strong_as_the_authors(accuracy, reference, norm, loss):
    library = pytest.importorskip("pyautoattack.autopgd_base", reason="needs the extra eval")
    settings = {"n_iter": 20, "use_largereps": norm == "L1"}
    if loss == "targeted":
        theirs = reference(library.APGDAttack_targeted, norm, n_target_classes=3, **settings)
        ours = accuracy(APGD(20, loss="targeted_dlr", targets=3), BALLS[norm])
    else:
        theirs = reference(library.APGDAttack, norm, loss=loss, **settings)
        ours = accuracy(APGD(20, loss={"ce": "cross_entropy"}.get(loss, loss)), BALLS[norm])
    assert ours <= theirs + MARGINS[norm]


@pytest.mark.thorough
@pytest.mark.parametrize(("norm", "queries"), [("Linf", 300), ("L2", 150), ("L1", 150)])
def test_square_is_as_strong_as_the_authors(accuracy, reference, norm, queries):
    library = pytest.importorskip("pyautoattack.square", reason="needs the extra eval")
    theirs = reference(library.SquareAttack, norm, n_queries=queries, p_init=0.8, resc_schedule=False, seed=0)
    assert accuracy(Square(queries), BALLS[norm]) <= theirs + MARGINS["Square"]


@pytest.mark.thorough
@pytest.mark.parametrize("norm", BALLS)
def test_targeted_apgd_is_stronger_than_pgd(accuracy, norm):
    """By 3, 6 and 9 images of 150, at a std of at most 1.3."""
    targeted = APGD(20, loss="targeted_dlr", targets=2)
    assert accuracy(targeted, BALLS[norm]) <= accuracy(PGD(20), BALLS[norm])


def test_uneven_budgets_are_searched_as_well_as_even_ones(trained, accuracy):
    _, x, _ = trained
    threat_model = PixelBox(0.26 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)))
    pgd = accuracy(PGD(20), threat_model)
    assert accuracy(APGD(20), threat_model) <= pgd + 0.7
    assert accuracy(Square(100), threat_model) < accuracy(Square(1), threat_model)


def test_targets_are_at_most_the_other_classes():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(9, 5)), torch.rand(4, 1, 3, 3)
    y = network(x).argmax(1)
    x_adv = APGD(5, loss="targeted_dlr", targets=9)(network, LinfBall(1.0), x, y)
    assert (network(x_adv).argmax(1) != y).all()
    with pytest.raises(SettingError, match="loss: got 'targeted_dlr'; take cross_entropy or margin"):
        APGD(5, loss="targeted_dlr")(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), LinfBall(0.1), x, y % 3)


def test_apgd_ascends_where_nothing_can_be_broken():
    """Two-class linear network of large margins: the highest loss of each ball is reached all the same."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), 0.4 + 0.2 * torch.rand(8, 1, 4, 4)
    y = network(x).argmax(1)
    w = (network[1].weight[1] - network[1].weight[0]).detach()
    optima = ((LinfBall(1e-3), w.abs().sum()), (L2Ball(1e-3), w.norm()), (L1Ball(1e-3), w.abs().max()))
    for threat_model, optimum in optima:
        x_adv = APGD(100, loss="margin")(network, threat_model, x, y)
        rise = margin(network(x_adv), y) - margin(network(x), y)
        torch.testing.assert_close(rise, (1e-3 * optimum).expand(8), rtol=0.01, atol=1e-6)


@pytest.mark.thorough
def test_carlini_wagner_finds_the_distance_to_a_plane():
    """In two classes, away from the ends of [0, 1], it is the margin over the norm of the weights' difference."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), 0.4 + 0.2 * torch.rand(8, 1, 4, 4)
    with torch.no_grad():
        network[1].bias.copy_(-network[1].weight @ x.flatten(1).mean(0))  # the plane goes through the middle of them
    y = network(x).argmax(1)
    w = (network[1].weight[1] - network[1].weight[0]).detach()
    plane = (-margin(network(x), y) / w.norm()).detach()
    x_adv = CarliniWagnerL2(100, 7, learning_rate=0.02)(network, L2Ball(4.0), x, y)
    assert (network(x_adv).argmax(1) != y).all()
    torch.testing.assert_close((x_adv - x).flatten(1).norm(dim=1), plane, rtol=0.03, atol=1e-4)
    confident = CarliniWagnerL2(100, 7, learning_rate=0.02, confidence=0.1)(network, L2Ball(4.0), x, y)
    assert (margin(network(confident), y) > 0.099).all()


def test_carlini_wagner_finds_the_nearest_class_where_another_is_likelier():
    """In a linear network whose runner-up is far, for its logit hardly depends on the image."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), 0.4 + 0.2 * torch.rand(20, 1, 6, 6)
    with torch.no_grad():
        network[1].bias.copy_(-network[1].weight @ x.flatten(1).mean(0))
        network[1].weight[1] = network[1].weight[0] + 0.02  # between them any image is far from the boundary
        network[1].bias[:2] = -network[1].weight[:2] @ x.flatten(1).mean(0)
        network[1].bias[1] -= 0.03
    logits, weight = network(x).detach(), network[1].weight.detach()
    y = logits.argmax(1)
    gaps = logits.gather(1, y[:, None]) - logits
    planes = (gaps / (weight[y][:, None] - weight).norm(dim=2)).scatter(1, y[:, None], torch.inf)
    runner_up = gaps.scatter(1, y[:, None], torch.inf).argmin(1)
    assert (planes.argmin(1) != runner_up).sum() >= 3
    x_adv = CarliniWagnerL2(learning_rate=0.02, targets=1)(network, L2Ball(6.0), x, y)
    assert (network(x_adv).argmax(1) != y).all()
    torch.testing.assert_close((x_adv - x).flatten(1).norm(dim=1), planes.amin(1), rtol=0.03, atol=2e-3)


def test_carlini_wagner_gets_away_from_black_and_white():
    """The nearest point is that of a quadratic program, which BoxedHalfspace solves exactly."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), (torch.rand(20, 1, 8, 8) < 0.3).float()
    with torch.no_grad():
        network[1].bias.copy_(-network[1].weight @ x.flatten(1).mean(0))
    logits, weight = network(x).detach(), network[1].weight.detach()
    y = logits.argmax(1)
    away, b = weight[y] - weight[1 - y], (logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    nearest, feasible = BoxedHalfspace(away, x.flatten(1)).solve(b, torch.arange(20))
    assert feasible.all()
    x_adv = CarliniWagnerL2()(network, L2Ball(8.0), x, y)
    assert (network(x_adv).argmax(1) != y).all()
    ratio = (x_adv - x).flatten(1).norm(dim=1) / nearest.norm(dim=1)
    assert (ratio > 0.999).all()
    assert (ratio < 1.03).all()


@pytest.mark.thorough
def test_carlini_wagner_is_nearer_than_what_pgd_finds(trained):
    """Also where one search, of the highest other logit, ends in a class that is likelier and farther (1.56 times)."""
    network, x, y = trained
    correct = (network(x).argmax(1) == y).nonzero().squeeze(1)[72:96]
    x, y = x[correct], y[correct]
    x_adv = CarliniWagnerL2()(network, L2Ball(28.0), x, y)
    assert (network(x_adv).argmax(1) != y).all()
    distance = (x_adv - x).flatten(1).norm(dim=1)
    broken = network(PGD(50, restarts=2, early_stop=True)(network, L2Ball(1.5), x, y)).argmax(1) != y
    assert broken.sum() >= 5
    assert (distance[broken] < 1.5 * 1.15).all()


def test_apgd_keeps_all_examples_where_a_layer_normalises_by_the_batch():
    for seed in range(5):
        torch.manual_seed(seed)
        layers = nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        network, x = nn.Sequential(nn.Flatten(), *layers).train(), torch.rand(8, 1, 4, 4)
        y = network(x).argmax(1)
        statistics = network[2].running_mean.clone()
        x_adv = APGD(20, mode="frozen")(network, LinfBall(0.05), x, y)
        assert LinfBall(0.05).contains(x_adv, x).all()
        assert torch.equal(network[2].running_mean, statistics)


RADII = {"linf": 0.03, "l2": 0.1, "l1": 0.25}


@pytest.mark.parametrize("norm", RADII)
def test_apgd_finds_for_an_example_alone_what_it_finds_in_a_batch(norm):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).double()
    x = torch.rand(8, 1, 6, 6, dtype=torch.double)
    y, threat_model = network(x).argmax(1), ball(norm, RADII[norm])
    with numbered((0,), range(8)):
        whole = APGD(20)(network, threat_model, x, y)
    wrong = network(whole).argmax(1) != y
    assert 0 < wrong.sum() < 8  # some leave, some stay
    for index in range(8):
        with numbered((0,), range(index, index + 1)):
            alone = APGD(20)(network, threat_model, x[index : index + 1], y[index : index + 1])
        torch.testing.assert_close(alone[0], whole[index])
