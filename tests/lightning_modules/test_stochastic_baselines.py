"""Baselines of Learn2Perturb: their losses compared with a plain computation, and their settings."""

import copy

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import AdversarialBNN, MixedAdversarialTraining, ParametricNoiseInjection
from robust.attacks import PGD
from robust.errors import SettingError
from robust.networks import BayesianWeights, DMSmall, NoisyWeights, divergence
from robust.random import numbered
from robust.threat_models import LinfBall

SHAPE, EPSILON = (1, 10, 10), 0.1
X = torch.rand(4, *SHAPE, dtype=torch.double, generator=torch.Generator().manual_seed(1))
Y = torch.arange(4) % 3
# the wrappers without noise
WRAPPERS = {MixedAdversarialTraining: lambda network: network, ParametricNoiseInjection: NoisyWeights}
WRAPPERS[AdversarialBNN] = lambda network: BayesianWeights(network, 0.05)


def module_of(method, **settings):
    torch.manual_seed(0)
    network = WRAPPERS[method](DMSmall(SHAPE, 3))
    settings = {"attack": PGD(2, start="clean"), "optimizer": lambda params: SGD(params, lr=0.1)} | settings
    return method(network, epsilon=EPSILON, **settings).double()


def fit(module, epochs=1):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=epochs
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=4))
    return trainer


def mixed_risk(network):
    logits = network(X)
    clean = F.cross_entropy(logits, Y)
    x_adv = PGD(2, start="clean")(network, LinfBall(EPSILON), X, logits.argmax(1))
    return (clean + F.cross_entropy(network(x_adv), Y)) / 2


def bayesian(network):
    x_adv = PGD(2, start="clean")(network, LinfBall(EPSILON), X, Y)
    return F.cross_entropy(network(x_adv), Y) + 0.7 * divergence(network, 0.08) / len(X)


@pytest.mark.parametrize(
    ("method", "settings", "risk"),
    [
        (MixedAdversarialTraining, {}, mixed_risk),
        (ParametricNoiseInjection, {"adversarial_delay": 0}, mixed_risk),
        (ParametricNoiseInjection, {"adversarial_delay": 1}, lambda network: F.cross_entropy(network(X), Y)),
        (AdversarialBNN, {"kl_weight": 0.7}, bayesian),
    ],
)
def test_a_step_minimises_the_methods_risk(method, settings, risk):
    module = module_of(method, **settings)
    plain = copy.deepcopy(module.classifier)
    fit(module)
    plain.train()
    with numbered((module.run_seed(), 0, 0), range(len(X)), len(X)):
        risk(plain).backward()
    for before, after in zip(plain.parameters(), module.classifier.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad)
        assert before.grad.abs().max() > 0


def test_images_are_attacked_after_the_delay():
    module, epochs = module_of(ParametricNoiseInjection, adversarial_delay=2), []
    ascend = module.attack.ascend
    module.attack.ascend = lambda *arguments: epochs.append(module.current_epoch) or ascend(*arguments)
    fit(module, epochs=4)
    assert epochs == [2, 3]


def test_networks_with_noise_are_stochastic():
    assert [module_of(method).stochastic for method in WRAPPERS] == [False, True, True]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (ParametricNoiseInjection, {"adversarial_delay": -1}, "model.adversarial_delay: got -1"),
        (AdversarialBNN, {"prior_std": 0.0}, "model.prior_std: got 0.0"),
        (AdversarialBNN, {"kl_weight": -1.0}, "model.kl_weight: got -1.0"),
    ],
)
def test_wrong_settings(method, settings, message):
    with pytest.raises(SettingError, match=message):
        module_of(method, **settings)


def test_networks_without_noise_are_refused():
    with pytest.raises(SettingError, match=r"model.classifier: got 'DMSmall'; wrap it in robust.networks.NoisyWeights"):
        ParametricNoiseInjection(DMSmall(SHAPE, 3))
    with pytest.raises(SettingError, match=r"'DMSmall'; wrap it in robust.networks.BayesianWeights"):
        AdversarialBNN(DMSmall(SHAPE, 3))
