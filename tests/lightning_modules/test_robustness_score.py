"""Training for R2: each step compared with a plain computation, its phases, and the networks that it updates."""

import copy

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from datamodules import CropAndFlip, Digits
from lightning_modules import RobustnessScoreTraining
from robust.errors import SettingError

RATE, WEIGHT = 0.05, 0.3


class Generator(nn.Module):
    """x + tanh(conv), clipped, with dropout, which must be off in the classifier's step."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return (x + self.dropout(self.conv(x)).tanh()).clamp(0, 1)


def small(**settings):
    torch.manual_seed(3)
    classifier = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5)
    )
    generator = Generator()
    generator.dropout.p = settings.pop("dropout", 0.0)
    plain = {"warmup_epochs": 0, "generator_epochs": 0, "gradient_clip": None, "score_weight": WEIGHT}
    sgd = {name: lambda params: SGD(params, lr=RATE) for name in ("optimizer", "generator_optimizer")}
    return RobustnessScoreTraining(classifier, generator, **(plain | sgd | settings)).double()


def batches():
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(2, 8, 1, 8, 8, generator=generator).double()
    y = torch.randint(5, (2, 8), generator=generator)
    return [(x[0], y[0]), (x[1], y[1])]


def fit(module, epochs=1):
    parts = [DataLoader(TensorDataset(*part), batch_size=8) for part in batches()]
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, enable_model_summary=False, **options)
    trainer.fit(module, CombinedLoader(parts, "min_size"))
    assert trainer.global_step == epochs
    return module


def descended(network, loss):
    """One step of gradient descent."""
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    for weight, gradient in zip(network.parameters(), gradients, strict=True):
        weight.data -= RATE * gradient


def plain_step(f, g, form, floors=(0.05, 0.1), detach=True, only_flipped=False):
    """Algorithm 1 in plain code: update f on the first batch, then g on the second against the new f."""
    (x, y), (z, _) = batches()
    g.eval()
    x_star = g(x).detach()
    distance = (x_star - x).square().sum((1, 2, 3)).sqrt()
    f.train()
    logits, logits_star = f(x), f(x_star)
    p = logits.softmax(1).detach() if detach else logits.softmax(1)
    agreement = -(p * logits_star.log_softmax(1)).sum(1)
    if form == "literal":
        term = -distance / torch.stack([max(c, torch.tensor(floors[0]).double()) for c in agreement])
    else:
        term = agreement / torch.stack([max(d, torch.tensor(floors[1]).double()) for d in distance])
    if only_flipped:
        term = term * (f.eval()(x_star).argmax(1) != f(x).argmax(1))
        f.train()
    descended(f, F.cross_entropy(logits, y) + WEIGHT * term.mean())
    f.eval()
    g.train()
    chosen = f(z).argmax(1)
    z_star = g(z)
    q = f(z_star).softmax(1)
    losses = []
    for k in range(8):
        second = q[k].sort(descending=True).values[1]  # the paper's j, which gives the same loss
        hinge = (q[k, chosen[k]] - second).clamp(min=0)
        losses.append(0.5 * (z_star[k] - z[k]).square().sum() + 20 * hinge)
    descended(g, torch.stack(losses).mean())
    return f, g


@pytest.mark.parametrize("form", ["literal", "inverse"])
@pytest.mark.parametrize(
    "settings", [{}, {"grad_through_reference": True}, {"only_flipped": True}, {"floors": (2.0, 3.0)}]
)
def test_a_step_of_each_network(form, settings):
    settings = dict(settings)
    floors = settings.pop("floors", (0.05, 0.1))
    module = small(form=form, disagreement_floor=floors[0], distance_floor=floors[1], **settings)
    f, g = copy.deepcopy(module.classifier), copy.deepcopy(module.generator)
    detach, flipped = not settings.get("grad_through_reference", False), settings.get("only_flipped", False)
    plain_step(f, g, form, floors, detach, flipped)
    fit(module)
    for one, other in ((module.classifier, f), (module.generator, g)):
        for name, value in other.state_dict().items():
            torch.testing.assert_close(
                one.state_dict()[name], value, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
            )


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_each_phase_updates_its_network_alone():
    start = small(warmup_epochs=1, generator_epochs=1)
    first = fit(copy.deepcopy(start), 1)
    assert not same(first.classifier, start.classifier)
    assert same(first.generator, start.generator)
    second = fit(copy.deepcopy(start), 2)
    assert same(second.classifier, first.classifier)  # running statistics included
    assert not same(second.generator, start.generator)
    third = fit(copy.deepcopy(start), 3)
    assert not same(third.classifier, second.classifier)
    assert not same(third.generator, second.generator)


def test_no_gradient_reaches_the_other_network():
    module = small(dropout=0.5)
    module.log = lambda *_, **__: None
    (x, y), _ = batches()
    before = copy.deepcopy(module)
    module.classifier_loss(x, y).backward()
    assert all(parameter.grad is None for parameter in module.generator.parameters())
    assert all(parameter.grad is not None for parameter in module.classifier.parameters())
    assert same(module.generator, before.generator)
    assert module.generator.training, "its dropout was off in the step alone"
    alone = fit(small(generator_epochs=1))
    assert all(parameter.grad is None for parameter in alone.classifier.parameters())
    assert all(parameter.grad is not None for parameter in alone.generator.parameters())
    assert all(parameter.requires_grad for parameter in alone.parameters()), "frozen in the step alone"


def test_the_classifiers_step_uses_the_generator_without_dropout():
    quiet, noisy = small(dropout=0.0), small(dropout=0.5)
    for module in (quiet, noisy):
        module.log = lambda *_, **__: None
    (x, y), _ = batches()
    assert quiet.classifier_loss(x, y) == noisy.classifier_loss(x, y)


def test_the_sign_of_the_term_pushes_the_boundary_away():
    """Lowering the term makes f agree with itself at x*, in both forms."""
    for form in ("literal", "inverse"):
        module = small(form=form, score_weight=5.0)
        for parameter in module.generator.parameters():
            parameter.data.normal_(0, 0.5)
        module.log = lambda *_, **__: None
        (x, y), _ = batches()
        x_star = module.generator(x).detach()

        def agreement(module=module, x=x, x_star=x_star):
            f = module.classifier
            with torch.no_grad():
                return float(-(f(x).softmax(1) * f(x_star).log_softmax(1)).sum(1).mean())

        before = agreement()
        optimizer = SGD(module.classifier.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            (module.classifier_loss(x, y) - F.cross_entropy(module(x), y)).backward()
            optimizer.step()
        assert agreement() < before, form


def test_the_logged_metrics_show_a_generator_that_flips_nothing():
    module = fit(small())
    metrics = module.trainer.callback_metrics
    assert 0 <= metrics["train/flip_rate"] <= 1
    assert metrics["train/distance"] > 0
    assert {"train/loss", "train/generator_loss", "train/disagreement"} <= metrics.keys()


def test_an_identity_flips_nothing_though_the_classifier_has_dropout():
    module = small()
    module.classifier.insert(4, nn.Dropout(0.5))
    nn.init.zeros_(module.generator.conv.weight)
    nn.init.zeros_(module.generator.conv.bias)
    metrics = fit(module).trainer.callback_metrics
    assert metrics["train/flip_rate"] == 0
    assert metrics["train/distance"] == 0


class Watched(RobustnessScoreTraining):
    """Records its batches."""

    def training_step(self, batch, batch_idx):
        self.seen.append([part[0].clone() for part in batch])


@pytest.mark.filterwarnings("ignore:.*the first step steps no optimizer")
def test_the_data_modules_give_two_orders_of_the_same_images():
    module = Watched(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), Generator())
    module.seen = []
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    digits = Digits(batch_size=59, augmentation=CropAndFlip(padding=2, flip=True))
    pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **options).fit(module, digits)
    assert len(module.seen) == 22
    orders = []
    for stream in range(2):
        sampler = digits.batches(digits.images("train"), 59, train=True)
        sampler.seed = digits._stream_seed(stream)
        orders.append(torch.cat(sampler.of_epoch()))
    assert all(torch.equal(order.sort().values, torch.arange(1298)) for order in orders)
    assert (orders[0] == orders[1]).float().mean() < 0.05
    plain = digits.images("train").images.float() / 255
    for stream in range(2):
        # crops of up to two pixels and flips hardly change the sum of an image's pixels
        seen = torch.cat([parts[stream] for parts in module.seen])
        mass, expected = seen.sum((1, 2, 3)), plain[orders[stream]].sum((1, 2, 3))
        assert torch.corrcoef(torch.stack([mass, expected]))[0, 1] > 0.9
    placements = [digits._placement(digits.augmentation, stream) for stream in range(2)]
    assert not torch.equal(placements[0][0], placements[1][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_weight": -1}, r"model\.score_weight: got -1"),
        ({"form": "plus"}, r"model\.form: got 'plus'; give literal or inverse"),
        ({"adversarial_weight": 0}, r"model\.adversarial_weight: got 0"),
        ({"disagreement_floor": 0}, r"model\.disagreement_floor: got 0"),
        ({"distance_floor": 0}, r"model\.distance_floor: got 0"),
        ({"warmup_epochs": -1}, r"model\.warmup_epochs: got -1"),
        ({"generator_epochs": -1}, r"model\.generator_epochs: got -1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)
