"""Attacks on networks with noise go on to the end: a pass that misclassifies an image by chance breaks no image."""

import pytest
import torch
from torch import nn

from robust.attacks import APGD, PGD, CarliniWagnerL2, Square
from robust.errors import SettingError
from robust.evaluation import attack_variants, under_the_strongest
from robust.networks import Noisy, without_noise
from robust.threat_models import LinfBall

EPSILON = 0.15


@pytest.fixture
def network():
    """The logits are the pixels, and noise: an image at the boundary is misclassified in half of the passes."""
    linear = nn.Linear(2, 2)
    linear.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    return Noisy(nn.Sequential(nn.Flatten(), linear), after=["0"], image_shape=(1, 1, 2), initial_scale=0.25)


@pytest.fixture
def images():
    return torch.tensor([0.6, 0.4]).view(1, 1, 1, 2).expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.int64)


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize(
    "attack",
    [
        lambda num_samples: PGD(20, early_stop=True, num_samples=num_samples),
        lambda num_samples: APGD(20, num_samples=num_samples),
    ],
)
def test_gradient_attacks_reach_the_worst_corner(network, images, attack, num_samples):
    torch.manual_seed(0)
    x, y = images
    corner = x + EPSILON * torch.tensor([-1.0, 1.0])
    found = attack(num_samples)(network, LinfBall(EPSILON), x, y)
    assert (found - corner).abs().flatten(1).amax(1).le(1e-6).float().mean() > 0.7


def test_a_class_may_say_that_its_passes_differ(images):
    class Random(nn.Module):
        stochastic = True

        def forward(self, x):
            return x.flatten(1) + 0.25 * torch.randn(len(x), 2)

    torch.manual_seed(0)
    x, y = images
    found = PGD(20, early_stop=True)(Random(), LinfBall(EPSILON), x, y)
    assert torch.allclose(found, x + EPSILON * torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2))


def test_the_best_of_several_runs_is_kept(network, images):
    torch.manual_seed(0)
    x, y = images
    alone, several = (
        PGD(1, step_size=0.2, restarts=restarts, num_samples=50)(network, LinfBall(EPSILON), x, y)
        for restarts in (1, 8)
    )
    with without_noise(network):
        margins = [(network(found)[:, 1] - network(found)[:, 0]).mean() for found in (alone, several)]
    assert margins[1] > margins[0]


def test_square_uses_all_queries(network, images):
    torch.manual_seed(0)
    x, y = images
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    Square(40, num_samples=2)(network, LinfBall(EPSILON), x, y)
    assert len(passes) >= 80


def test_without_noise_attacks_stop_as_before(network, images):
    torch.manual_seed(0)
    x, y = images
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    with without_noise(network):
        found = PGD(20, early_stop=True)(network, LinfBall(EPSILON), x, y)
        assert (network(found).argmax(1) == 1).all()
    assert len(passes) < 20


def test_the_mean_network_is_attacked_to_the_end(network, images):
    torch.manual_seed(0)
    x, y = images
    attack = attack_variants("pgd", PGD(20, early_stop=True), network, stochastic=True, num_samples=3)
    found = attack["pgd_mean_network"](network, LinfBall(EPSILON), x, y)
    assert torch.allclose(found, x + EPSILON * torch.tensor([-1.0, 1.0]))


def test_carlini_wagner_refuses_noise(network, images):
    with pytest.raises(SettingError, match="it has noise: take PGD or APGD"):
        CarliniWagnerL2()(network, LinfBall(EPSILON), *images)
    with without_noise(network):
        CarliniWagnerL2(steps=2, searches=1)(network, LinfBall(EPSILON), *images)


def test_the_strongest_of_equal_attacks_is_none_stronger():
    """The lowest of each image's fractions would be far below the accuracy that all attacks have."""
    torch.manual_seed(0)
    correct = torch.rand(4, 5000, 10) < 0.7
    assert abs(under_the_strongest(correct).sum() / 50_000 - 0.7) < 0.01
    assert correct.sum(2).amin(0).sum() / 50_000 < 0.6


def test_the_strongest_attack_of_each_image_is_found():
    torch.manual_seed(0)
    chances = torch.tensor([[0.9, 0.1], [0.2, 0.8]])[:, :, None].repeat_interleave(2000, 1)  # each wins on half
    correct = torch.rand(2, 4000, 10) < chances
    assert abs(under_the_strongest(correct).sum() / 40_000 - 0.15) < 0.01
