"""Balls and boxes: what is inside, what is nearest, and the direction of steepest ascent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.attacks import APGD, FGSM, PGD, Square
from robust.errors import SettingError
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox

KINDS = ["linf", "box", "l2", "l1"]


def make(kind, size, x):
    """A threat model of about that size; of a box, with budgets between 0 and the size."""
    if kind == "box":
        return PixelBox(size * torch.rand_like(x))
    return {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}[kind](size)


def images(seed, dtype=torch.float32):
    """Some pixels are at the ends of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, 1, 4, 4, generator=generator, dtype=dtype).mul(1.4).sub(0.2).clamp(0, 1)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([1e-4, 0.1, 1.0, 100.0]))
@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_projections_are_inside(kind, seed, size, far):
    torch.manual_seed(seed)
    x = images(seed)
    threat_model = make(kind, size, x)
    for point in (threat_model.sample(x), threat_model.project(x + far * torch.randn_like(x), x)):
        assert threat_model.contains(point, x).all()
        lower, upper = threat_model.interval(x)
        assert (point >= lower - 1e-6).all()
        assert (point <= upper + 1e-6).all()
        torch.testing.assert_close(threat_model.project(point, x), point)  # what is inside stays where it is
    assert torch.equal(threat_model.project(x, x), x)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_outside_is_not_contained(kind):
    x = torch.full((3, 1, 4, 4), 0.5)
    threat_model = make(kind, 0.1, x)
    far, out = x + 0.11, x.clone()
    out[1, 0, 0, 0] = 1.01
    assert not threat_model.contains(far, x).any()
    assert threat_model.contains(out, x).tolist() == [True, False, True]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.2, 1.0, 4.0]), st.sampled_from([0.2, 1.0, 3.0]))
@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_no_point_is_nearer(kind, seed, size, far):
    """Weak duality: with any multiplier, the least Lagrangian over the box is a lower bound of the squared distance."""
    torch.manual_seed(seed)
    x = images(seed, torch.double)[:1]
    v = far * torch.randn_like(x)
    threat_model = make(kind, size, x)
    projected = threat_model.project(x + v, x)
    assert threat_model.contains(projected, x).all()

    def excess(d):
        return d.square().sum() - size**2 if kind == "l2" else d.abs().sum() - size

    def least(multiplier):
        d = v / (1 + multiplier) if kind == "l2" else v.sign() * (v.abs() - multiplier / 2).clamp(min=0)
        return d.clamp(-x, 1 - x)

    low, high = 0.0, 1e6
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(least(middle)) > 0 else (low, middle)
    bound = ((least(low) - v).square().sum() + low * excess(least(low))).item()
    distance = (projected - x - v).square().sum().item()
    assert distance == pytest.approx(bound, abs=1e-5 * (1 + bound))  # the radius is met to 1e-6 of it


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 5.0, 50.0]), st.sampled_from([0.1, 10.0]))
@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_projections_of_whole_images_solve_the_optimality_conditions(kind, seed, size, far):
    """One multiplier for all pixels, found by 200 halvings in float64, gives the same point in float32."""
    torch.manual_seed(seed)
    x = torch.rand(2, 3, 16, 16).mul(1.4).sub(0.2).clamp(0, 1)
    v = far * torch.randn_like(x)
    projected = make(kind, size, x).project(x + v, x) - x
    for each, d, image in zip(projected, (x + v - x).double(), x.double(), strict=True):

        def at(multiplier, d=d, image=image):
            moved = d / (1 + multiplier) if kind == "l2" else d.sign() * (d.abs() - multiplier).clamp(min=0)
            return torch.maximum(torch.minimum(moved, 1 - image), -image)

        low, high = 0.0, 1e6
        for _ in range(200):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if at(middle).norm(p=2 if kind == "l2" else 1) > size else (low, middle)
        spacing = torch.finfo(torch.float32).eps * float(d.abs().amax())  # of the floats near the multiplier
        torch.testing.assert_close(each.double(), at(high), atol=1e-5 + 8 * spacing, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_directions_have_unit_size_and_ascend(kind):
    x, gradient = torch.full((3, 1, 10, 10), 0.5), torch.randn(3, 1, 10, 10) * 1e-25
    gradient[2] = 0
    direction = make(kind, 0.5, x).steepest_direction(gradient, 0.05).flatten(1)
    order = {"l2": 2, "l1": 1}.get(kind, torch.inf)
    torch.testing.assert_close(direction.norm(p=order, dim=1), torch.tensor([1.0, 1.0, 0.0]))
    assert (direction * gradient.flatten(1)).sum(1)[:2].gt(0).all()
    if kind == "l1":
        assert (direction != 0).sum(1).tolist() == [5, 5, 0]


def test_steps_in_l1_move_a_share_of_each_example():
    gradient = torch.tensor([1.0, 2.0, -8.0, -3.0]).reshape(1, 1, 1, 4).repeat(2, 1, 1, 1)
    direction = L1Ball(1.0).steepest_direction(gradient, torch.tensor([0.1, 0.5])).flatten(1)
    assert direction.tolist() == [[0, 0, -1, 0], [0, 0, -0.5, -0.5]]


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_samples_have_even_directions_and_all_radii(kind):
    torch.manual_seed(0)
    x = torch.full((4000, 1, 1, 3), 0.5)
    delta = (make(kind, 0.4, x).sample(x) - x).flatten(1)
    norms = delta.norm(p={"l2": 2, "l1": 1}[kind], dim=1)
    torch.testing.assert_close(norms.quantile(torch.tensor([0.25, 0.75])), torch.tensor([0.1, 0.3]), atol=0.01, rtol=0)
    assert delta.mean(0).abs().max() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_selected_examples_keep_their_threat_model(kind):
    torch.manual_seed(0)
    x = images(0)
    far = x + torch.randn_like(x)
    threat_model = make(kind, 0.3, x)
    for chosen in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        part = threat_model.select(chosen).project(far[chosen], x[chosen])
        torch.testing.assert_close(part, threat_model.project(far, x)[chosen])


def test_the_box_is_differentiable_to_its_budgets_except_where_it_is_cut():
    x, budgets = torch.tensor([[[[0.0, 0.5, 1.0]]]]), torch.full((1, 1, 1, 3), 0.2).requires_grad_()
    lower, upper = PixelBox(budgets).interval(x)
    (upper.sum() - lower.sum()).backward()
    assert budgets.grad.flatten().tolist() == [1.0, 2.0, 1.0]


@pytest.mark.parametrize(("kind", "epsilon"), [(LinfBall, -0.1), (LinfBall, 1.1), (L2Ball, -1.0), (L1Ball, torch.inf)])
def test_radius_out_of_range(kind, epsilon):
    with pytest.raises(SettingError, match="epsilon: got"):
        kind(epsilon)


def test_budgets_of_numpy_leave_images_in_float32():
    """Regression: attacks ended in a RuntimeError or named the wrong type, or returned images of float64."""
    torch.manual_seed(0)
    x, y, network = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1]), nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    box = PixelBox(torch.full((1, 2, 2), 0.1, dtype=torch.float64))
    for attack in (PGD(5), PGD(5, restarts=2, early_stop=True), APGD(5), FGSM(), Square(20)):
        x_adv = attack(network, box, x, y)
        assert x_adv.dtype == torch.float32
        assert box.contains(x_adv, x).all()
    assert box.sample(x).dtype == box.interval(x).lower.dtype == torch.float32


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "targeted_dlr"])
def test_networks_may_return_logits_in_float64(inner, loss):
    """Regression: APGD ended in a RuntimeError, after the training."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
            if inner:
                self.double()

        def forward(self, x):
            return self.layers(x.double()) if inner else self.layers(x).double()

    torch.manual_seed(0)
    x, network = torch.rand(6, 1, 2, 2), Network()
    y = network(x).argmax(1)
    for ball in (LinfBall(0.3), L2Ball(0.5), L1Ball(1.0)):
        x_adv = APGD(8, loss=loss, targets=2)(network, ball, x, y)
        assert x_adv.dtype == torch.float32
        assert ball.contains(x_adv, x).all()
        assert nn.functional.cross_entropy(network(x_adv), y) > nn.functional.cross_entropy(network(x), y)
