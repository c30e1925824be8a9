"""Learn2Perturb: the regulariser, the parameters that each phase updates, noise in evaluation."""

import copy

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import Learn2Perturb
from lightning_modules.learn2perturb import harmonic_number, noise_reward
from robust.attacks import PGD
from robust.errors import SettingError
from robust.networks import DMSmall, Noisy, injections, switch_noise, without_noise
from robust.random import numbered

SHAPE = (1, 10, 10)


def small_module(initial_scale=0.25, rate=0.1, **settings):
    torch.manual_seed(0)
    network = Noisy(DMSmall(SHAPE, 3), ["0", "2"], SHAPE, initial_scale)
    settings = {"noise_delay": 0, "adversarial_delay": 0, "attack": PGD(1)} | settings
    for name in ("optimizer", "theta_optimizer"):
        settings.setdefault(name, lambda params: SGD(params, lr=rate))
    return Learn2Perturb(network, epsilon=0.1, **settings).double()


def fit(module, epochs=1, batches=1, **settings):
    x = torch.rand(batches * 4, *SHAPE, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, torch.arange(batches * 4) % 3), batch_size=4)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=epochs, **settings
    )  # fmt: skip
    trainer.fit(module, loader)
    return trainer


def split(module):
    """Copies of W and of theta."""
    scales = {id(theta) for theta in module.scales}
    weights = [weight for weight in module.classifier.parameters() if id(weight) not in scales]
    return copy.deepcopy(weights), copy.deepcopy(module.scales)


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize(("t", "value"), [(1, 1), (2, 1.5), (10, 2.929), (140, 5.52), (240, 6.06), (339, 6.40)])
def test_tau(t, value):
    assert harmonic_number(t) == pytest.approx(value, abs=5e-3)


@pytest.mark.parametrize("epochs", [10, pytest.param(139, marks=pytest.mark.slow)])
def test_the_scale_under_the_regulariser_alone(epochs):
    theta = torch.full((1,), 0.25, requires_grad=True)
    optimizer = SGD([theta], lr=0.1, momentum=0.9)
    expected = {1: 0.287, 10: 0.419, 40: 0.636, 90: 0.874, 139: 1.057}
    for t in range(1, epochs + 1):
        tau = harmonic_number(t)
        for _ in range(391):
            optimizer.zero_grad()
            (1e-4 * noise_reward([theta], tau)).backward()
            optimizer.step()
        if t in expected:
            assert theta.item() == pytest.approx(expected[t], rel=0.02), f"after {t} epochs"


def test_a_joint_step_updates_both_on_the_loss_and_theta_on_the_regulariser():
    module = small_module(theta_update="joint", gamma=0.1, adversarial_delay=1)
    plain, rate = copy.deepcopy(module), 0.1
    fit(module)
    x = torch.rand(4, *SHAPE, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    with numbered((module.run_seed(), 0, 0), range(4), 4):
        F.cross_entropy(plain.classifier(x), torch.arange(4) % 3).backward()
    for theta in plain.scales:
        theta.grad -= 0.1 / (2 * theta.detach().sqrt())
    for weight, stepped in zip(plain.classifier.parameters(), module.classifier.parameters(), strict=True):
        torch.testing.assert_close(stepped, weight - rate * weight.grad)


@pytest.mark.parametrize("update", ["two_step", "joint"])
def test_phases(update):
    module = small_module(noise_delay=1, adversarial_delay=2, theta_update=update)
    attacked, seen = [], []
    ascend = module.attack.ascend
    module.attack.ascend = lambda *arguments: attacked.append(module.current_epoch) or ascend(*arguments)
    module.on_train_epoch_end = lambda: seen.append((injections(module.classifier)[0].enabled, split(module)))
    before = split(module)
    trainer = fit(module, epochs=3)
    (off, (weights, scales)), (on, (later_weights, later_scales)), _ = seen
    assert (off, on) == (False, True)
    assert same(scales, before[1])
    assert not same(weights, before[0])
    assert not same(later_scales, scales)
    assert not same(later_weights, weights)
    assert attacked == [2]
    assert trainer.global_step == 3


def test_the_regularisers_step_updates_every_scale_and_no_weight():
    module = small_module(optimizer=lambda params: SGD(params, lr=0.0), scales_learn_from="regulariser", gamma=0.1)
    weights, scales = split(module)
    fit(module)
    new_weights, new_scales = split(module)
    assert same(new_weights, weights)
    for new, old in zip(new_scales, scales, strict=True):
        torch.testing.assert_close(new, old + 0.1 * 0.1 / (2 * old.sqrt()))


@pytest.mark.parametrize("update", ["two_step", "joint"])
def test_constant_scales(update):
    module = small_module(scales_learn_from="nothing", theta_update=update)
    weights, scales = split(module)
    fit(module)
    new_weights, new_scales = split(module)
    assert same(new_scales, scales)
    assert not same(new_weights, weights)


@pytest.mark.parametrize("update", ["two_step", "joint"])
def test_scales_are_at_least_theta_min_after_every_step(update):
    module = small_module(0.011, theta_update=update, gamma=1e-6, rate=1.0)
    lowest = []
    step = module.step
    module.step = lambda *arguments, **more: (
        step(*arguments, **more) or lowest.append(min(theta.min().item() for theta in module.scales))
    )
    fit(module, epochs=2, batches=3)
    assert len(lowest) == (12 if update == "two_step" else 6)
    assert min(lowest) == 0.01


def test_evaluation_is_noisy_and_the_noise_can_be_turned_off():
    module = small_module().eval()
    x = torch.rand(1, *SHAPE, dtype=torch.double).repeat(2, 1, 1, 1)
    assert module.stochastic
    assert not torch.equal(*module(x))
    with without_noise(module):
        assert torch.equal(*module(x))
    assert not torch.equal(*module(x))


@pytest.mark.parametrize("on", [False, True])
def test_a_checkpoint_saves_whether_noise_was_on(on):
    module = small_module()
    switch_noise(module, on)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    loaded = small_module()
    loaded.on_load_checkpoint(checkpoint)
    assert [injection.enabled for injection in injections(loaded)] == [on, on]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -1.0}, "model.gamma: got -1.0"),
        ({"theta_min": 0.0}, "model.theta_min: got 0.0"),
        ({"noise_delay": -1}, "model.noise_delay: got -1"),
        ({"theta_update": "both"}, "model.theta_update: got 'both'"),
        ({"scales_learn_from": "all"}, "model.scales_learn_from: got 'all'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(SettingError, match=message):
        small_module(**settings)


def test_a_network_without_noise_and_scales_that_decay():
    with pytest.raises(SettingError, match=r"model.classifier: got 'DMSmall'; wrap it in robust.networks.Noisy"):
        Learn2Perturb(DMSmall(SHAPE, 3))
    with pytest.raises(SettingError, match=r"theta_optimizer.init_args.weight_decay: got 0.1"):
        small_module(theta_optimizer=lambda params: SGD(params, lr=0.1, weight_decay=0.1))
