"""What holds of every attack: inside the threat model, and the network and torch's state as they were."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from robust import losses
from robust.attacks import APGD, FGSM, PGD, CarliniWagnerL2, Square
from robust.errors import SettingError
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox, ThreatModel

ATTACKS = {
    "FGSM": FGSM(),
    "FGSM, random start": FGSM(1.25, random_start=True),
    "PGD": PGD(3),
    "PGD, all settings": PGD(3, 0.1, True, "gaussian", 2, "margin", True, 2, 0.1),
    "APGD": APGD(4, restarts=2),
    "APGD, targeted": APGD(4, loss="targeted_dlr", targets=2, num_samples=2, wide_start=False),
    "Square": Square(5),
    "CarliniWagnerL2": CarliniWagnerL2(3, 2),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
every_mode = pytest.mark.parametrize("mode", ["eval", "keep", "frozen"])


def small(*, norm=False):
    """A convolutional classifier of 6x6 images in 5 classes."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def batch(size=6):
    return torch.rand(size, 1, 6, 6).mul(1.4).sub(0.2).clamp(0, 1), torch.arange(size) % 5


@every_attack
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(["linf", "box", "l2", "l1"]), st.sampled_from([0.0, 0.05, 0.8]))
def test_results_are_inside_the_threat_model(attack, seed, kind, size):
    network = small()
    torch.manual_seed(seed)
    x, y = batch()
    threat_model = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}.get(kind, lambda e: PixelBox(e * torch.rand_like(x)))(
        size
    )
    x_adv = attack(network, threat_model, x, y)
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    assert threat_model.contains(x_adv, x).all()
    if size == 0:
        torch.testing.assert_close(x_adv, x)


def modes_and_state(network):
    return (
        [(m.training, getattr(m, "track_running_stats", None)) for m in network.modules()],
        [p.requires_grad for p in network.parameters()],
        {name: value.clone() for name, value in network.state_dict().items()},
    )


@every_attack
def test_the_network_is_left_alone(attack):
    network = small(norm=True).train()
    network[1].eval()  # a mixture of modes that the attack must give back
    network[0].weight.requires_grad_(False)
    before = modes_and_state(network)
    attack(network, LinfBall(0.1), *batch())
    after = modes_and_state(network)
    assert before[:2] == after[:2]
    torch.testing.assert_close(before[2], after[2], rtol=0, atol=0)
    assert all(p.grad is None for p in network.parameters())


@every_attack
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(attack, context):
    network = small()
    torch.manual_seed(1)
    x, y = batch()
    budgets = 0.2 * torch.rand_like(x)
    torch.manual_seed(2)
    expected = attack(network, PixelBox(budgets), x, y)
    torch.manual_seed(2)
    with context():
        found = attack(network, PixelBox(budgets.clone()), x.clone(), y.clone())
    torch.testing.assert_close(found.clone(), expected)


@every_mode
@pytest.mark.parametrize("name", ["FGSM", "PGD", "APGD", "Square", "CarliniWagnerL2"])
def test_modes(name, mode):
    """Which batch norm the attack sees, and whether its running statistics keep a trace of that."""
    attack = copy.copy(ATTACKS[name])
    attack.mode = mode
    network = small(norm=True).train()
    seen = []
    network[1].register_forward_hook(lambda layer, *_: seen.append((layer.training, layer.track_running_stats)))
    before = modes_and_state(network)
    attack(network, LinfBall(0.1), *batch())
    after = modes_and_state(network)
    assert set(seen) == {{"eval": (False, True), "keep": (True, True), "frozen": (True, False)}[mode]}
    assert before[0] == after[0]
    moved = any(not torch.equal(before[2][key], after[2][key]) for key in before[2])
    assert moved == (mode == "keep")


def test_modes_are_given_back_when_the_network_fails():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(7, 5)).train()
    with pytest.raises(RuntimeError, match="shapes"):
        PGD(2, mode="frozen")(network, LinfBall(0.1), *batch())
    assert network.training
    assert network[0].track_running_stats


def test_training_under_autocast_still_reaches_the_weights():
    network, (x, y) = small().train(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = PGD(2, restarts=2)(network, LinfBall(0.1), x, y)
        nn.functional.cross_entropy(network(x_adv), y).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("attack", "settings_"),
    [
        (PGD, {"steps": 0}),
        (PGD, {"restarts": 0}),
        (PGD, {"num_samples": 0}),
        (PGD, {"step_size": 0.0}),
        (PGD, {"absolute": True}),
        (PGD, {"start": "middle"}),
        (PGD, {"sparsity": 0.0}),
        (PGD, {"loss": "hinge"}),
        (PGD, {"mode": "train"}),
        (APGD, {"steps": 0}),
        (APGD, {"restarts": 0}),
        (APGD, {"targets": 0}),
        (APGD, {"num_samples": 0}),
        (APGD, {"loss": "hinge"}),
        (APGD, {"mode": "train"}),
        (Square, {"queries": 0}),
        (Square, {"first_area": 0.0}),
        (Square, {"num_samples": 0}),
        (Square, {"mode": "train"}),
        (CarliniWagnerL2, {"steps": 0}),
        (CarliniWagnerL2, {"searches": 0}),
        (CarliniWagnerL2, {"targets": 0}),
        (CarliniWagnerL2, {"first_c": 0.0}),
        (CarliniWagnerL2, {"learning_rate": 0.0}),
        (CarliniWagnerL2, {"confidence": -1.0}),
        (CarliniWagnerL2, {"mode": "train"}),
    ],
)
def test_wrong_settings(attack, settings_):
    with pytest.raises(SettingError, match=f"^{next(iter(settings_))}: got "):
        attack(**settings_)


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_a_loss_must_be_one_number_per_example(attack):
    with pytest.raises(SettingError, match=r"^loss: got \(\); return one number per example, shape "):
        attack(2, loss=nn.functional.cross_entropy)(small(), LinfBall(0.1), *batch())


@pytest.mark.parametrize("loss", ["margin", "robust.losses.margin"])
def test_attacks_and_threat_models_can_be_named_in_a_configuration(loss):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attack", type=Callable[[nn.Module, ThreatModel, Tensor, Tensor], Tensor] | PGD)
    parser.add_argument("--threat_model", type=L1Ball)
    settings_ = {
        "attack": {"class_path": "robust.attacks.PGD", "init_args": {"steps": 3, "loss": loss}},
        "threat_model": {"class_path": "robust.threat_models.L1Ball", "init_args": {"epsilon": 3.0}},
    }
    made = parser.instantiate(parser.parse_object(settings_))
    assert made.attack.loss is losses.margin
    assert made.threat_model.epsilon == 3
