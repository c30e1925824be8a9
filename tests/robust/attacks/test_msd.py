"""Multi steepest descent: in the union of the balls, and each step the best of the three for each example."""

import pytest
import torch
import torch.nn.functional as F

from robust.attacks import PGD, MultiSteepestDescent
from robust.errors import SettingError
from robust.threat_models import L1Ball, L2Ball, LinfBall

BALLS = {"linf": LinfBall(0.1), "l2": L2Ball(1.5), "l1": L1Ball(12.0)}
SIZES = {"linf": 0.025, "l2": 0.4, "l1": 3.0}
STEP_SIZES = {f"step_size_{norm}": size for norm, size in SIZES.items()}


def each_loss(network, x, y):
    return F.cross_entropy(network(x), y, reduction="none")


def test_every_image_is_in_one_of_the_balls_and_each_is_used(trained):
    network, x, y = trained
    x_adv = MultiSteepestDescent(10, **STEP_SIZES)(network, BALLS, x, y)
    inside = torch.stack([ball.contains(x_adv, x) for ball in BALLS.values()])
    assert inside.any(0).all()
    assert (inside.sum(1) > 0).all()
    assert not inside.all(1).any(), "no ball has them all"


def test_a_step_is_the_best_of_a_pgd_step_in_each_norm(trained):
    network, x, y = trained
    x_adv = MultiSteepestDescent(1, **STEP_SIZES)(network, BALLS, x, y)
    candidates = [
        PGD(1, SIZES[norm], absolute=True, start="clean")(network, ball, x, y) for norm, ball in BALLS.items()
    ]
    losses = torch.stack([each_loss(network, images, y) for images in candidates])
    torch.testing.assert_close(each_loss(network, x_adv, y), losses.amax(0))
    assert len(losses.argmax(0).unique()) > 1


def test_it_leaves_less_than_pgd_in_a_norm_on_average(trained):
    network, x, y = trained
    torch.manual_seed(0)
    left = [(network(PGD(10)(network, ball, x, y)).argmax(1) == y).sum() for ball in BALLS.values()]
    union = (network(MultiSteepestDescent(20, **STEP_SIZES)(network, BALLS, x, y)).argmax(1) == y).sum()
    assert union < torch.stack(left).double().mean() - 5


@pytest.mark.parametrize("setting", ["steps", "step_size_linf", "step_size_l2", "step_size_l1", "sparsity"])
def test_wrong_settings(setting):
    with pytest.raises(SettingError, match=f"{setting}: got 0"):
        MultiSteepestDescent(**{setting: 0})


def test_wrong_mode():
    with pytest.raises(SettingError, match="mode: got 'train'"):
        MultiSteepestDescent(mode="train")
