"""Adversarial training and its variants: each step compared with a plain computation of the paper's formula."""

import copy
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn

from datamodules import Digits
from lightning_modules import (
    TRADES,
    YOPO,
    AdversarialTraining,
    FreeAdversarialTraining,
    InstanceAdaptiveTraining,
    StandardTraining,
    WeightedMinimax,
)
from robust.attacks import PGD
from robust.errors import SettingError
from robust.networks import Normalize
from tests.lightning_modules.plain_steps import (
    EPSILON,
    FixedStart,
    ascended,
    assert_same,
    data,
    descended,
    network,
    one_step,
    sgd,
    start_of,
)


@pytest.fixture(autouse=True)
def _double():
    """Use float64, so that rounding changes no gradient's sign."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def each_margin(logits, y):
    """The probability margin, by sorting."""
    p = logits.softmax(1)
    return torch.stack([row[k] - torch.cat([row[:k], row[k + 1 :]]).max() for row, k in zip(p, y, strict=True)])


def each_kl(logits, reference):
    p, q = reference.softmax(1), logits.softmax(1)
    return (p * (p / q).log()).sum(1)


ATTACK = {"steps": 3, "step_size": 0.4}


def test_standard_training():
    x, y = data()
    before = network()
    expected = descended(before, lambda f: F.cross_entropy(f(x), y))
    assert_same(one_step(StandardTraining(copy.deepcopy(before), optimizer=sgd), x, y), expected)


def test_adversarial_training():
    x, y = data()
    before = network()
    x_adv = ascended(before, x, lambda z: F.cross_entropy(z, y, reduction="none"), 3, 0.4 * EPSILON, start_of(x))
    expected = descended(before, lambda f: F.cross_entropy(f(x_adv), y))
    module = AdversarialTraining(copy.deepcopy(before), epsilon=EPSILON, attack=FixedStart(**ATTACK), optimizer=sgd)
    assert_same(one_step(module, x, y), expected)


def test_trades():
    x, y = data()
    before = network()
    clean = before(x).detach()
    x_adv = ascended(before, x, lambda z: each_kl(z, clean), 3, 0.4 * EPSILON, start_of(x))
    expected = descended(before, lambda f: F.cross_entropy(f(x), y) + 6 * each_kl(f(x_adv), f(x)).mean())
    module = TRADES(copy.deepcopy(before), epsilon=EPSILON, beta=6, attack=FixedStart(**ATTACK), optimizer=sgd)
    assert_same(one_step(module, x, y), expected, 1e-12)


@pytest.mark.parametrize("beta", [None, 5.0])
@pytest.mark.parametrize("detach", [False, True])
def test_weighted_minimax(beta, detach):
    x, y = data()
    before, alpha = network(), 2.0
    clean = before(x).detach()

    def weighted(logits, reference, constant=False):
        weight = (-alpha * each_margin(logits, y)).exp()
        weight = weight.detach() if constant else weight
        each = F.cross_entropy(logits, y, reduction="none") if beta is None else each_kl(logits, reference)
        return weight * each

    x_adv = ascended(before, x, lambda z: weighted(z, clean, detach), 3, 0.4 * EPSILON, start_of(x))

    def risk(f):
        robust = weighted(f(x_adv), f(x), detach).mean()
        return robust if beta is None else F.cross_entropy(f(x), y) + beta * robust

    module = WeightedMinimax(
        copy.deepcopy(before),
        epsilon=EPSILON,
        alpha=alpha,
        beta=beta,
        detach_weight=detach,
        attack=FixedStart(**ATTACK),
        optimizer=sgd,
    )
    assert_same(one_step(module, x, y), descended(before, risk), 1e-12)


@pytest.mark.parametrize("beta", [None, 5.0])
def test_without_alpha_it_is_the_base_method_bit_for_bit(beta):
    x, y = data()
    before = network()
    pl.seed_everything(0, verbose=False)
    weighted = WeightedMinimax(copy.deepcopy(before), epsilon=EPSILON, alpha=0, beta=beta, attack=PGD(3), optimizer=sgd)
    first = one_step(weighted, x, y)
    pl.seed_everything(0, verbose=False)
    if beta is None:
        base = AdversarialTraining(copy.deepcopy(before), epsilon=EPSILON, attack=PGD(3), optimizer=sgd)
    else:
        base = TRADES(copy.deepcopy(before), epsilon=EPSILON, beta=beta, attack=PGD(3), optimizer=sgd)
    assert_same(first, one_step(base, x, y), 0)


@pytest.mark.parametrize("channels", [4, 12])
def test_free_adversarial_training(channels):
    x, y = data()
    before = network(channels)
    expected, delta = before, torch.zeros_like(x)
    for _ in range(3):
        x_adv = (x + delta).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(expected(x_adv), y), x_adv)
        expected = descended(expected, lambda f, at=x_adv: F.cross_entropy(f(at.detach()), y))
        delta = (delta + EPSILON * gradient.sign()).clamp(-EPSILON, EPSILON)
    module = FreeAdversarialTraining(copy.deepcopy(before), epsilon=EPSILON, replays=3, optimizer=sgd)
    assert_same(one_step(module, x, y), expected)
    assert torch.equal(module._perturbation, delta)


@pytest.mark.parametrize("channels", [4, 12])
def test_yopo_with_one_inner_step_follows_the_full_gradient(monkeypatch, channels):
    """By the chain rule YOPO-m-1 attacks like PGD, and accumulates the weights' gradient at each iterate."""
    x, y = data()
    before = network(channels)
    monkeypatch.setattr("robust.threat_models.LinfBall.sample", lambda self, x: start_of(x))
    x_adv, risks = start_of(x), []
    for _ in range(3):
        risks.append(x_adv)
        x_adv = ascended(before, x, lambda z: F.cross_entropy(z, y, reduction="none"), 1, 0.4 * EPSILON, x_adv)
    expected = descended(before, lambda f: sum(F.cross_entropy(f(at), y) for at in risks) / 3)
    module = YOPO(copy.deepcopy(before), "0", epsilon=EPSILON, outer=3, inner=1, step_size=0.4, optimizer=sgd)
    assert_same(one_step(module, x, y), expected)


@pytest.mark.parametrize("channels", [4, 12])
@pytest.mark.parametrize("method", [partial(YOPO, first_layer="0"), FreeAdversarialTraining])
def test_the_activation_behind_the_first_layer_may_work_in_place(method, channels):
    x, y = data()
    trained = []
    for inplace in (False, True):
        before = network(channels)
        before[1] = nn.ReLU(inplace)
        torch.manual_seed(3)
        trained.append(one_step(method(before, epsilon=EPSILON, optimizer=sgd), x, y))
    assert_same(*trained)


@pytest.mark.parametrize("channels", [4, 12])
def test_yopos_inner_steps_hold_the_costate(monkeypatch, channels):
    """The second inner step has the same costate, and the first layer at the new point."""
    x, y = data()
    before = network(channels)
    monkeypatch.setattr("robust.threat_models.LinfBall.sample", lambda self, x: start_of(x))
    first, rest = before[0], before[1:]
    start = start_of(x)
    hidden = first(start).detach().requires_grad_()
    (costate,) = torch.autograd.grad(F.cross_entropy(rest(hidden), y), hidden)
    x_adv = start
    for _ in range(2):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((costate * first(x_adv)).sum(), x_adv)
        x_adv = (x_adv.detach() + 0.4 * EPSILON * gradient.sign()).clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
    expected = descended(before, lambda f: (F.cross_entropy(f(start), y) + F.cross_entropy(f(x_adv), y)) / 2)
    module = YOPO(copy.deepcopy(before), "0", epsilon=EPSILON, outer=2, inner=2, step_size=0.4, optimizer=sgd)
    assert_same(one_step(module, x, y), expected)


def test_yopos_first_layer_may_have_no_weights(monkeypatch):
    """Such as Normalize: the costate is then that of its output."""
    x, y = data()
    before = nn.Sequential(Normalize([0.5], [0.5]), network())
    monkeypatch.setattr("robust.threat_models.LinfBall.sample", lambda self, x: start_of(x))
    module = YOPO(copy.deepcopy(before), "0", epsilon=EPSILON, outer=1, inner=1, step_size=0.4, optimizer=sgd)
    expected = descended(before, lambda f: F.cross_entropy(f(start_of(x)), y))
    assert_same(one_step(module, x, y), expected)


class Fragile(nn.Module):
    """Correct as long as no pixel has moved by more than its tolerance, a tenth of the pixel."""

    def __init__(self, originals):
        super().__init__()
        self.register_buffer("originals", originals)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        moved = (x - self.originals[: len(x)]).abs().amax((1, 2, 3))
        return torch.stack([0.1 - moved, moved - 0.1], 1) + self.weight


@pytest.mark.parametrize(("radius", "expected"), [(0.05, 0.07), (0.095, 0.095), (0.2, 0.18)])
def test_radii_grow_stay_or_shrink(radius, expected):
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3).long()
    attack = PGD(1, 1.0, start="random")
    module = InstanceAdaptiveTraining(Fragile(x), epsilon=0.1, discretization=0.02, largest_radius=0.5, attack=attack)
    torch.manual_seed(0)
    selected = module._select(x, y, torch.full((3,), radius))
    assert torch.allclose(selected, torch.full((3,), expected))


def test_radii_are_smoothed_bounded_and_stored(tmp_path):
    torch.set_default_dtype(torch.float32)
    digits = Digits(batch_size=64)
    module = InstanceAdaptiveTraining(
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        epsilon=0.1,
        discretization=0.02,
        smoothing=0.5,
        warmup_epochs=1,
        largest_radius=0.11,
        attack=PGD(2),
        optimizer=sgd,
    )
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(module, datamodule=digits)
    assert module.radii.shape == (1298,)
    sampler = digits.batches(digits.images("train"), 64, train=True)
    sampler.set_epoch(1)
    seen = torch.cat(sampler.of_epoch())
    others = torch.ones(1298, dtype=torch.bool)
    others[seen] = False
    assert (module.radii[others] == 0.1).all()
    assert (module.radii[seen] != 0.1).any()
    assert module.radii.min() >= 0.09 - 1e-6
    assert module.radii.max() <= 0.105 + 1e-6
    again = InstanceAdaptiveTraining(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), epsilon=0.1, attack=PGD(2))
    checkpoint = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    again.on_load_checkpoint(checkpoint)
    assert torch.equal(again.radii, module.radii)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_threat_model_is_the_norms_ball(norm):
    module = AdversarialTraining(network(), 0.5, norm)
    (name,) = module.threat_models(data()[0], 0.5)
    assert name == f"{norm}_0.5"
    x, _ = data()
    assert bool(module.threat_model(0.5).contains(module.threat_model(0.5).sample(x), x).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdversarialTraining(network(), 1.5), r"model\.epsilon: got 1\.5; give a size in \(0, 1\]"),
        (lambda: AdversarialTraining(network(), 0.5, "l3"), r"norm: got 'l3'; give linf, l2 or l1"),
        (lambda: TRADES(network(), beta=-1), r"model\.beta: got -1"),
        (lambda: WeightedMinimax(network(), alpha=-1), r"model\.alpha: got -1"),
        (lambda: WeightedMinimax(network(), beta=-1), r"model\.beta: got -1"),
        (lambda: FreeAdversarialTraining(network(), replays=0), r"model\.replays: got 0"),
        (lambda: YOPO(network(), "conv1"), r"model\.first_layer: got 'conv1'; give one of 0, 1, 2, 3"),
        (lambda: YOPO(network(), "0", outer=0), r"model\.outer: got 0"),
        (lambda: YOPO(network(), "0", inner=0), r"model\.inner: got 0"),
        (lambda: YOPO(network(), "0", step_size=0), r"model\.step_size: got 0"),
        (lambda: InstanceAdaptiveTraining(network(), smoothing=0), r"model\.smoothing: got 0"),
        (lambda: InstanceAdaptiveTraining(network(), discretization=0), r"model\.discretization: got 0"),
        (lambda: InstanceAdaptiveTraining(network(), warmup_epochs=-1), r"model\.warmup_epochs: got -1"),
        (
            lambda: InstanceAdaptiveTraining(network(), epsilon=0.2, largest_radius=0.1),
            r"model\.largest_radius: got 0\.1",
        ),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_l2_radii_may_exceed_a_pixels_range():
    assert AdversarialTraining(network(), 2.0, "l2").epsilon == 2.0


def test_radii_need_data_with_train_indices():
    x, y = data()
    with pytest.raises(SettingError, match="method indices"):
        one_step(InstanceAdaptiveTraining(network(), attack=PGD(1)), x, y)
