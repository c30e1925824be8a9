"""Threat models refuse what are no images, and budgets that are none."""

import re

import pytest
import torch

from robust.errors import SettingError
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox
from tests.wrong_inputs import given, images


@pytest.mark.parametrize("kind", ["linf", "box", "l2", "l1"])
def test_threat_models_check_images_and_what_they_project(kind):
    x, _ = images()
    ball = {"linf": LinfBall(0.1), "box": PixelBox(torch.full((1, 6, 6), 0.1)), "l2": L2Ball(1.0), "l1": L1Ball(1.0)}[
        kind
    ]
    for wrong in ("normalised", "0..255", "NaN", "uint8", "float16", "no channels", "no images", "a list"):
        _, broken, _, message = given(wrong)
        calls = [ball.interval, ball.sample, lambda z: ball.project(z, z), lambda z: ball.contains(z, z)]
        for call in calls:
            with pytest.raises(SettingError, match="^" + message):
                call(broken)
    assert ball.project(x + 100, x).max() <= 1  # what is projected may be anywhere
    assert not ball.contains(x + 100, x).any()
    assert not ball.contains(x + torch.nan, x).any()
    for far, message in (
        (x + torch.nan, "x_adv: got 'values from nan to nan'; give finite values"),
        (x / 0, r"x_adv: got 'values from \S+ to \S+'; give finite values"),
        (x[:3], r"x_adv: got \(3, 1, 6, 6\); give the images' shape, \(6, 1, 6, 6\)"),
    ):
        with pytest.raises(SettingError, match="^" + message):
            ball.project(far, x)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (torch.tensor(-0.3), "budgets: got 'values from -0.3 to -0.3'; give finite budgets of at least 0"),
        (torch.tensor([[0.1, -1e-9]]), "budgets: got 'values from -1e-09 to 0.1'"),
        (torch.tensor(torch.nan), "budgets: got 'values from nan to nan'"),
        (torch.tensor(torch.inf), "budgets: got 'values from inf to inf'"),
        (torch.tensor(1), "budgets: got 'torch.int64'; give floats"),
        (torch.zeros(0), r"budgets: got \(0,\)"),
        (0.1, "budgets: got 'float'; give a tensor"),
    ],
)
def test_budgets_are_checked(budgets, message):
    with pytest.raises(SettingError, match="^" + message):
        PixelBox(budgets)


@pytest.mark.parametrize("shape", [(5, 1, 6, 6), (3, 6, 6), (6, 1, 6, 6, 6)])
def test_budgets_of_another_shape_do_not_enlarge_the_images(shape):
    x, _ = images()
    box = PixelBox(torch.full(shape, 0.1))
    for call in (box.interval, box.sample, lambda z: box.project(z, z), lambda z: box.contains(z, z)):
        with pytest.raises(SettingError, match=f"budgets: got {re.escape(str(shape))}; give a shape that broadcasts"):
            call(x)


def test_budgets_above_one_and_of_zero_are_allowed():
    x, _ = images()
    lower, upper = PixelBox(torch.tensor(3.0)).interval(x)
    assert (lower == 0).all()
    assert (upper == 1).all()
    assert torch.equal(PixelBox(torch.zeros(())).project(x + 1, x), x)
