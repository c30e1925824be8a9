"""Boxes and the attack that searches them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.attacks import PGD
from robust.errors import SettingError
from robust.networks import DMSmall
from robust.threat_models import LinfBall, PixelBox


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans())
def test_samples_and_projections_are_in_the_box_and_in_the_image_range(seed, size, uniform):
    torch.manual_seed(seed)
    x = torch.rand(2, 1, 4, 4).round(decimals=1)
    budgets = size * torch.rand_like(x)
    threat_model = LinfBall(size) if uniform else PixelBox(budgets)
    widths = torch.full_like(x, size) if uniform else budgets
    for point in (threat_model.sample(x), threat_model.project(torch.randn_like(x), x)):
        assert ((point - x).abs() <= widths + 1e-6).all()
        assert point.min() >= 0
        assert point.max() <= 1
    torch.testing.assert_close(threat_model.project(x, x), x)


def test_the_box_is_differentiable_to_its_budgets_except_where_it_is_cut():
    x, budgets = torch.tensor([[[[0.0, 0.5, 1.0]]]]), torch.full((1, 1, 1, 3), 0.2).requires_grad_()
    lower, upper = PixelBox(budgets).interval(x)
    (upper.sum() - lower.sum()).backward()
    assert budgets.grad.flatten().tolist() == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("epsilon", [-0.1, 1.1])
def test_radius_out_of_range(epsilon):
    with pytest.raises(SettingError, match="epsilon: got"):
        LinfBall(epsilon)


def test_pgd_reaches_the_closed_form_of_a_linear_classifier():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), 0.3 + 0.4 * torch.rand(8, 1, 3, 3)
    y = network(x).argmax(1)
    budgets = 0.1 * torch.rand_like(x)
    z = network(PGD(steps=10)(network, PixelBox(budgets), x, y))
    direction = network[1].weight[1] - network[1].weight[0]
    worst = network(x)[:, 1] - network(x)[:, 0] + (1 - 2 * y) * (direction.abs() * budgets.flatten(1)).sum(1)
    torch.testing.assert_close(z[:, 1] - z[:, 0], worst)


def test_pgd_leaves_the_network_alone_and_works_in_inference_mode():
    torch.manual_seed(0)
    network, x, y = DMSmall((1, 12, 12)).eval(), torch.rand(4, 1, 12, 12), torch.arange(4)
    with torch.inference_mode():
        x_adv = PGD(steps=3, restarts=2)(network, LinfBall(0.1), x.clone(), y.clone())
    assert not x_adv.requires_grad
    assert not network.training
    assert all(p.grad is None for p in network.parameters())
    loss, attacked = F.cross_entropy(network(x), y), F.cross_entropy(network(x_adv), y)
    assert attacked > loss


def test_wrong_settings_of_pgd():
    for setting in ({"steps": 0}, {"restarts": 0}, {"step_size": 0.0}):
        with pytest.raises(SettingError, match=next(iter(setting))):
            PGD(**setting)
