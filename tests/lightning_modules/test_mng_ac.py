"""MNG-AC: its meta-gradient compared with finite differences, its step with a plain one, and its cost in passes."""

import copy

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import MNGAC, MSD, AdversarialTraining, MultiNormTraining
from robust.attacks import PGD, MultiSteepestDescent
from robust.errors import SettingError
from robust.losses import jensen_shannon
from robust.networks import NoiseGenerator
from robust.threat_models import ball

RADII = {"linf": 0.1, "l2": 0.5, "l1": 2.0}
RATE = 0.05


@pytest.fixture(autouse=True)
def _double():
    """Use float64 for finite differences."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network():
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    return nn.Sequential(*layers)


def data():
    generator = torch.Generator().manual_seed(2)
    return torch.rand(8, 1, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator)


def sgd(params):
    return torch.optim.SGD(params, lr=RATE)


def fixed_start(threat_model, x):
    """A deterministic start, so that any number of processes attacks in the same way."""
    pattern = torch.linspace(0, 40, x[0].numel(), device=x.device, dtype=x.dtype).sin().view_as(x[:1])
    return threat_model.project(x + 0.3 * threat_model.radius * pattern, x)


class FixedStart(PGD):
    """PGD from a deterministic start."""

    def _started(self, threat_model, x):
        return fixed_start(threat_model, x)


class FixedGenerator(NoiseGenerator):
    """A generator whose random numbers are the same for all images."""

    def draw(self, x):
        shape = (1, x.shape[1], x.shape[2] + 2, x.shape[3] + 2)
        pattern = torch.arange(1, 1 + shape[1] * shape[2] * shape[3], dtype=x.dtype, device=x.device).mul(2.3).sin()
        return 1.4 * pattern.view(shape).expand(len(x), -1, -1, -1)


def attacks(kind=FixedStart, steps=3):
    return {f"attack_{norm}": kind(steps, mode="frozen") for norm in RADII}


def make(generator=None, method=MNGAC, classifier=None, **settings):
    classifier = network() if classifier is None else classifier
    settings = {"generator": generator, "generator_optimizer": sgd} | settings if method is MNGAC else settings
    return method(classifier, epsilon=0.1, epsilon_l2=0.5, epsilon_l1=2.0, optimizer=sgd, **settings)


def trainer():
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **options)


def one_step(module, x, y):
    """The module after one batch."""
    fitting = trainer()
    fitting.fit(module, DataLoader(TensorDataset(x, y), batch_size=len(x)))
    assert fitting.global_step == 1
    return module


def plain_meta_loss(classifier, generator, norm, x, x_adv, y, fit="tanh"):
    """The loss on attacked images of a copy of the classifier after a step of SGD on noisy images."""
    copied = copy.deepcopy(classifier).train()
    x_noisy = ball(norm, RADII[norm]).fit_noise(x, generator(x), fit).detach()
    optimizer = torch.optim.SGD(copied.parameters(), lr=RATE)
    F.cross_entropy(copied(x_noisy), y).backward()
    optimizer.step()
    return F.cross_entropy(copied(x_adv), y).item()


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("conditional", [True, False])
def test_the_meta_gradient_agrees_with_finite_differences(norm, conditional):
    (x, y), generator = data(), FixedGenerator(1, conditional)
    module = make(generator)
    module.trainer = trainer()
    x_adv = PGD(3)(module.classifier, ball(norm, RADII[norm]), x, y)
    weights = list(generator.parameters())
    loss = module.meta_loss(ball(norm, RADII[norm]), x, x_adv, y, RATE)
    gradients = torch.autograd.grad(loss, weights)
    assert loss.item() == pytest.approx(plain_meta_loss(module.classifier, generator, norm, x, x_adv, y), rel=1e-12)

    torch.manual_seed(3)
    directions = [torch.randn_like(weight) for weight in weights]
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True)).item()
    values = []
    for shift in (1e-8, -2e-8):  # to one side of the weights, then from there to the other
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight += shift * direction
        values.append(plain_meta_loss(module.classifier, generator, norm, x, x_adv, y))
    assert (values[0] - values[1]) / 2e-8 == pytest.approx(slope, rel=1e-4)
    assert abs(slope) > 1e-5


@pytest.mark.parametrize("norm", RADII)
def test_one_step_is_that_of_the_algorithm(norm):
    (x, y), generator, classifier = data(), FixedGenerator(1), network()
    fixed, budget = FixedStart(3, mode="frozen"), ball(norm, RADII[norm])
    module = make(copy.deepcopy(generator), consistency=12.0, **attacks(), classifier=copy.deepcopy(classifier))
    module.attacks = {norm: module.attacks[norm]}
    one_step(module, x, y)

    x_adv = fixed(classifier.train(), budget, x, y)
    ahead = copy.deepcopy(classifier)
    loss = F.cross_entropy(ahead(budget.fit_noise(x, generator(x))), y)
    weights = dict(ahead.named_parameters())
    steps = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    looked = {name: weight - RATE * step for (name, weight), step in zip(weights.items(), steps, strict=True)}
    meta = F.cross_entropy(torch.func.functional_call(ahead, looked, x_adv), y)
    with torch.no_grad():
        for weight, gradient in zip(
            generator.parameters(), torch.autograd.grad(meta, list(generator.parameters())), strict=True
        ):
            weight -= RATE * gradient
    x_noisy = budget.fit_noise(x, generator(x)).detach()  # by the generator after its step
    logits = [classifier(images) for images in (x, x_noisy, x_adv)]
    (F.cross_entropy(logits[2], y) + 12 * jensen_shannon(*logits).mean()).backward()
    sgd(classifier.parameters()).step()

    for part, expected in ((module.generator, generator), (module.classifier, classifier)):
        for (name, one), other in zip(part.state_dict().items(), expected.state_dict().values(), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12), name
    assert module.classifier[1].num_batches_tracked == 3, "clean, noisy, attacked, and neither attack nor look-ahead"


def test_the_generators_step_does_not_change_the_classifier():
    (x, y), generator = data(), NoiseGenerator(1)
    module = make(generator)
    before = {}

    def meta_loss(*arguments, original=module.meta_loss):
        before.update(copy.deepcopy(module.classifier.state_dict()))
        return original(*arguments)

    def step(*optimizers, original=module.step):
        if before:  # the generator's, which is the first
            assert all(weight.grad is not None and weight.grad.norm() > 0 for weight in generator.parameters())
            assert all(weight.grad is None for weight in module.classifier.parameters())
            for name, value in module.classifier.state_dict().items():
                assert torch.equal(value, before.pop(name)), name
        original(*optimizers)

    module.meta_loss, module.step = meta_loss, step
    weights = [weight.detach().clone() for weight in generator.parameters()]
    one_step(module, x, y)
    assert before == {}, "the checks ran"
    assert all(not torch.equal(one, other) for one, other in zip(generator.parameters(), weights, strict=True))


def passes(module):
    """Forward passes of the classifier in one batch, in whole batches."""
    count = 0

    def counting(network, arguments, output):
        nonlocal count
        count += len(output) == len(x)  # not the checks on two blank images

    x, y = data()
    module.classifier.register_forward_hook(counting)
    one_step(module, x, y)
    return count


STEPS = 3


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (lambda: AdversarialTraining(network(), 0.1, attack=PGD(STEPS), optimizer=sgd), STEPS + 1),
        (lambda: make(consistency=0, **attacks(PGD, STEPS)), STEPS + 1),
        (lambda: make(**attacks(PGD, STEPS)), STEPS + 3),
        (lambda: make(NoiseGenerator(1), **attacks(PGD, STEPS)), STEPS + 2 + 3),
        (lambda: make(method=MultiNormTraining, **attacks(PGD, STEPS)), 3 * STEPS + 3),
        (lambda: make(method=MultiNormTraining, combine="maximum", **attacks(PGD, STEPS)), 3 * STEPS + 3),
        (lambda: make(method=MSD, attack=MultiSteepestDescent(STEPS)), 4 * STEPS + 1),
    ],
    ids=["Adv_p", "SAT", "SAT+AC", "SAT+AC+MNG", "Adv_avg", "Adv_max", "MSD"],
)
def test_cost_in_passes(module, expected):
    assert passes(module()) == expected


def test_norms_are_drawn_evenly():
    module, x, y = make(consistency=0.0), *data()
    balls, drawn = module.balls(1.0), []
    module.balls = lambda scale: balls
    module.attacks = {norm: lambda *_, norm=norm: drawn.append(norm) or x for norm in RADII}
    module.descend = module.log = module.all_optimizers = lambda *_, **__: [None]
    torch.manual_seed(0)
    for _ in range(600):
        module.training_step((x, y), 0)
    assert all(150 < drawn.count(norm) < 250 for norm in RADII)


@pytest.mark.parametrize("combine", ["average", "maximum"])
def test_average_and_maximum(combine):
    (x, y), classifier = data(), network()
    module = make(method=MultiNormTraining, combine=combine, classifier=copy.deepcopy(classifier), **attacks())
    one_step(module, x, y)
    attacked = [FixedStart(3, mode="frozen")(classifier.train(), ball(norm, RADII[norm]), x, y) for norm in RADII]
    losses = torch.stack([F.cross_entropy(classifier(x_adv), y, reduction="none") for x_adv in attacked])
    assert len(losses.argmax(0).unique()) > 1, "no norm is the worst for all"
    (losses.mean() if combine == "average" else losses.max(0).values.mean()).backward()
    sgd(classifier.parameters()).step()
    for one, other in zip(module.parameters(), classifier.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_multi_steepest_descent_trains_on_its_attack():
    (x, y), classifier = data(), network()
    attack = MultiSteepestDescent(3, mode="frozen")
    module = one_step(make(method=MSD, attack=attack, classifier=copy.deepcopy(classifier)), x, y)
    x_adv = attack(classifier.train(), {norm: ball(norm, radius) for norm, radius in RADII.items()}, x, y)
    F.cross_entropy(classifier(x_adv), y).backward()
    sgd(classifier.parameters()).step()
    for one, other in zip(module.parameters(), classifier.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_ramp_of_epsilon_scales_all_three_balls():
    module = make()
    assert {name: model.radius for name, model in module.threat_models(data()[0], 0.05).items()} == pytest.approx(
        {"linf_0.05": 0.05, "l2_0.25": 0.25, "l1_1": 1.0}
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make(consistency=-1), r"model\.consistency: got -1"),
        (lambda: make(generator_every=0), r"model\.generator_every: got 0; give a number of batches, at least 1"),
        (
            lambda: make(NoiseGenerator(1), consistency=0),
            r"model\.generator: got 'NoiseGenerator'; its noise is used on",
        ),
        (lambda: make(linf_fit="cut"), r"model\.linf_fit: got 'cut'; give one of tanh, clip, straight_through"),
        (lambda: MNGAC(network(), epsilon=2.0), r"model\.epsilon: got 2\.0"),
        (lambda: MNGAC(network(), epsilon_l2=0), r"model\.epsilon_l2: got 0"),
        (lambda: MSD(network(), epsilon_l1=-1), r"model\.epsilon_l1: got -1"),
        (lambda: MultiNormTraining(network(), combine="sum"), r"model\.combine: got 'sum'; give average or maximum"),
    ],
)
def test_wrong_settings(build, message):
    with pytest.raises(SettingError, match=message):
        build()


def test_the_generator_must_fit_the_images():
    module = make(nn.Conv2d(1, 2, 1))
    with pytest.raises(SettingError, match=r"model\.generator: got 'Conv2d with output"):
        module.check_shapes((1, 8, 8), 5)


def test_scaled_gradients_are_refused():
    module = make(NoiseGenerator(1))
    module.trainer = trainer()
    module.trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(SettingError, match=r"trainer\.precision: got '16-mixed'"):
        module.setup("fit")
