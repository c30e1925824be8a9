"""PGD against closed forms, and its settings."""

import pytest
import torch
from torch import nn

from robust.attacks import FGSM, PGD
from robust.errors import SettingError
from robust.losses import cross_entropy, kl, margin
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox


def linear():
    """Two-class linear network, images away from the ends of [0, 1], labels, and the difference of the weights."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), 0.4 + 0.2 * torch.rand(8, 1, 4, 4)
    return network, x, network(x).argmax(1), (network[1].weight[1] - network[1].weight[0]).detach()


def ascent(network, x, x_adv, y):
    """How much the margin of a two-class network has risen, (B,)."""
    return margin(network(x_adv), y) - margin(network(x), y)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("kind", ["linf", "box", "l2", "l1"])
def test_reaches_the_closed_form_of_a_linear_classifier(kind, loss):
    network, x, y, w = linear()
    budgets = 0.2 * torch.rand_like(x)
    threat_model, optimum = {
        "linf": (LinfBall(0.1), 0.1 * w.abs().sum()),
        "box": (PixelBox(budgets), (budgets.flatten(1) * w.abs()).sum(1)),
        "l2": (L2Ball(0.3), 0.3 * w.norm()),
        "l1": (L1Ball(0.3), 0.3 * w.abs().max()),
    }[kind]
    x_adv = PGD(40, 0.5, loss=loss)(network, threat_model, x, y)
    torch.testing.assert_close(ascent(network, x, x_adv, y), optimum.expand(8), rtol=1e-4, atol=0)
    single = FGSM(loss=loss)(network, threat_model, x, y)
    torch.testing.assert_close(ascent(network, x, single, y), optimum.expand(8), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_uses_the_rest_of_the_ball_where_pixels_reach_the_end_of_their_range(kind):
    """The optimum in [0, 1] of a linear function: a scaled and cut gradient in l2, pixels filled one by one in l1."""
    network, x, y, w = linear()
    x = torch.where(torch.rand_like(x) < 0.6, x, torch.rand_like(x).round())
    y = network(x).argmax(1)
    up = w * (1 - 2 * y)[:, None]
    room = torch.where(up > 0, 1 - x.flatten(1), x.flatten(1))
    if kind == "l1":
        order = up.abs().argsort(dim=1, descending=True)
        filled = room.gather(1, order).cumsum(1).clamp(max=0.8).diff(dim=1, prepend=torch.zeros(8, 1))
        optimum = (filled * up.abs().gather(1, order)).sum(1)
    else:
        scales = torch.logspace(-2, 3, 20000)
        moved = torch.minimum(scales[:, None, None] * up.abs(), room)
        optimum = (moved * up.abs()).sum(2).masked_fill(moved.norm(dim=2) > 0.8, 0.0).amax(0)
    threat_model = {"l1": L1Ball, "l2": L2Ball}[kind](0.8)
    x_adv = PGD(400, 0.02, loss="margin", sparsity=0.06)(network, threat_model, x, y)
    torch.testing.assert_close(ascent(network, x, x_adv, y), optimum, rtol=0.02, atol=0)


def test_steps_are_shares_of_the_budget_or_absolute():
    network, x, y, _ = linear()
    threat_model = PixelBox(0.4 * torch.rand_like(x))
    shares = (PGD(1, 0.25, start="clean")(network, threat_model, x, y) - x).abs()
    torch.testing.assert_close(shares, 0.25 * threat_model.budgets, atol=1e-6, rtol=0)
    pixels = (PGD(1, 2 / 255, absolute=True, start="clean")(network, threat_model, x, y) - x).abs()
    torch.testing.assert_close(pixels, torch.full_like(x, 2 / 255).minimum(threat_model.budgets), atol=1e-6, rtol=0)
    length = (PGD(1, 0.1, absolute=True, start="clean")(network, L2Ball(1.0), x, y) - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full((8,), 0.1))


def test_starts():
    network, x, y, _ = linear()

    def distance(start):  # the attack stays where it starts
        return (PGD(1, 1e-9, absolute=True, start=start)(network, LinfBall(0.1), x, y) - x).abs().max()

    assert distance("clean") < 1e-6
    assert 0.001 < distance("gaussian") < 0.006
    assert 0.09 < distance("random") <= 0.1 + 1e-6


@pytest.mark.thorough_but("linf")
@pytest.mark.parametrize("kind", ["linf", "box", "l2", "l1"])
def test_early_stopping_changes_no_verdict(trained, kind):
    network, x, y = trained
    sizes = {"linf": LinfBall(0.13), "l2": L2Ball(1.5), "l1": L1Ball(8.0), "box": PixelBox(0.3 * torch.rand_like(x))}
    verdicts = []
    for early_stop in (True, False):
        # no random start: the others' random numbers would differ where examples are left out
        attack = PGD(20, start="clean", restarts=2, loss="margin", early_stop=early_stop)
        x_adv = attack(network, sizes[kind], x, y)
        verdicts.append(network(x_adv).argmax(1) != y)
    # an example that is broken on the way and not at the end counts only where the attack looks on the way
    assert (verdicts[0] | ~verdicts[1]).all()
    assert (verdicts[0] ^ verdicts[1]).float().mean() < 0.02
    assert 0.2 < verdicts[0].float().mean() < 0.95


def test_early_stopping_saves_passes_and_returns_the_first_that_is_wrong():
    passes = []
    network, x, y, _ = linear()
    network.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    y = y.clone()
    y[:3] = 1 - y[:3]  # wrong to begin with
    x_adv = PGD(20, early_stop=True)(network, LinfBall(0.9), x, y)
    assert passes[:2] == [8, 5]
    assert passes[1:-1] == sorted(passes[1:-1], reverse=True)
    assert passes[-2] < 5
    assert torch.equal(x_adv[:3], x[:3])
    assert (network(x_adv).argmax(1) != y).all()


def test_restarts_keep_the_strongest():
    """A loss that is random: what is kept is the best that was seen, never worse than no perturbation."""
    network, x, y, _ = linear()
    threat_model, seen = LinfBall(0.05), []

    def noted(logits, labels):
        value = cross_entropy(logits, labels)
        if not value.requires_grad:
            seen.append(value)
        return value

    x_adv = PGD(1, 1e-6, restarts=5, loss=noted)(network, threat_model, x, y)
    assert len(seen) == 6
    broken = torch.stack(seen) > torch.tensor(2.0).log()
    best = torch.where(broken.any(0) & ~broken, -torch.inf, torch.stack(seen)).amax(0)
    torch.testing.assert_close(cross_entropy(network(x_adv), y), best)


class Noisy(nn.Module):
    """Linear network that multiplies each example by a fresh random number."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.drawn = []

    def forward(self, x):
        self.drawn.append(torch.randn(len(x), 1, 1, 1))
        return self.network(x * self.drawn[-1])


def test_expectation_over_randomness_is_the_mean_of_independent_gradients():
    network, x, y, w = linear()
    noisy = Noisy(network)
    x_adv = PGD(1, 0.1, True, "clean", loss="margin", num_samples=7)(noisy, L2Ball(1.0), x, y)
    assert len(noisy.drawn) == 7  # a pass each: a network may draw once for a whole batch
    mean = torch.stack(noisy.drawn).mean(0).flatten()
    gradient = (mean * (1 - 2 * y))[:, None] * w
    expected = 0.1 * gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close((x_adv - x).flatten(1), expected, atol=1e-6, rtol=1e-4)


def test_a_loss_of_this_batch():
    """TRADES: divergence from the clean logits, from a start beside the image, where its gradient is 0."""
    network, x, y, _ = linear()
    clean = network(x).detach()
    attack = PGD(10, start="gaussian")
    x_adv = attack(network, LinfBall(0.1), x, y, loss=lambda logits, _: kl(logits, clean))
    assert (kl(network(x_adv), clean) > 100 * kl(network(x + 0.001), clean)).all()
    with pytest.raises(SettingError, match="early_stop: got True; turn it off"):
        PGD(2, early_stop=True)(network, LinfBall(0.1), x, y, loss=lambda logits, _: kl(logits, clean))


def test_stronger_with_more_steps_and_larger_radius(accuracy):
    fgsm, pgd = accuracy(FGSM(), LinfBall(0.13)), accuracy(PGD(20), LinfBall(0.13))
    assert pgd < fgsm
    assert accuracy(PGD(20), LinfBall(0.2)) < pgd
    assert accuracy(PGD(20), LinfBall(0.5)) == 0
