"""Methods on the data manifold and their autoencoder, compared with plain computations."""

import copy

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import OnManifoldAdversarialTraining, OnManifoldRobustness, WassersteinAutoencoder
from lightning_modules.on_manifold_robustness import pair_weights
from lightning_modules.wasserstein_autoencoder import maximum_mean_discrepancy, moment_distance
from robust.attacks import LatentAttack
from robust.errors import SettingError
from robust.networks import Autoencoder
from robust.random import numbered, shared_randn, truncated_normal_like

RATE, SHAPE = 0.05, (1, 16, 16)


def sgd(params):
    return SGD(params, lr=RATE)


def autoencoder(seed=0):
    torch.manual_seed(seed)
    network = Autoencoder(SHAPE, code_size=3, width=2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(5)  # for decoded images that are not uniformly grey
    return network


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / "autoencoder.ckpt"
    torch.save({"state_dict": {f"autoencoder.{name}": w for name, w in autoencoder(7).state_dict().items()}}, path)
    return str(path)


def classifier():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 4, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5))


def data(count=6):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, *SHAPE, generator=generator).double(), torch.randint(5, (count,), generator=generator)


def fit(module, x, y, **settings):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = pl.Trainer(accelerator="cpu", enable_model_summary=False, **(options | settings))
    trainer.fit(module.double(), DataLoader(TensorDataset(x, y), batch_size=len(x)))
    return module


def descended(network, loss):
    parameters = list(network.parameters())
    for weight, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        weight.data -= RATE * gradient


def assert_same(one, other, tolerance=1e-10):
    for name, value in other.state_dict().items():
        torch.testing.assert_close(
            one.state_dict()[name], value, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


class Fixed(OnManifoldRobustness):
    """R4 training with deterministic radii and noise."""

    def draw_radii(self, x):
        return torch.tensor([2.0, 5.0, 9.0, 15.0]).to(x)

    def noise(self, codes):
        return torch.linspace(-30, 30, codes[0].numel()).to(codes).sin().view(codes[0].shape).expand_as(codes)


@pytest.mark.parametrize("through", [True, False])
def test_a_step_of_r4_training(trained, through):
    x, y = data()
    module = Fixed(
        classifier(),
        autoencoder(),
        autoencoder_checkpoint=trained,
        score_weight=0.7,
        sigma=0.5,
        num_samples=4,
        optimizer=sgd,
    )
    module.grad_through_reference = through
    f, wae = copy.deepcopy(module.classifier).double(), autoencoder(7).double().eval()
    logits, risks = f(x), []
    for i in range(len(x)):
        code = wae.encode(x[i : i + 1])
        noise = torch.linspace(-30, 30, 12).double().sin().view(4, 3)
        samples = wae.decode(code + 0.5 * noise).clamp(0, 1).detach()
        distances = [float((sample - x[i]).norm()) for sample in samples]
        p = logits[i].softmax(0) if through else logits[i].softmax(0).detach()
        each = [-(p * f(sample[None])[0].log_softmax(0)).sum() for sample in samples]
        risk = 0
        for epsilon in (2.0, 5.0, 9.0, 15.0):
            near = [c for c, d in zip(each, distances, strict=True) if d < epsilon]
            if near:
                risk = risk + sum(near) / len(near) / epsilon / 4
        risks.append(risk)
    assert any(isinstance(risk, torch.Tensor) for risk in risks)
    descended(f, F.cross_entropy(logits, y) + 0.7 * sum(risks) / len(x))
    fit(module, x, y)
    assert_same(module.classifier, f)
    assert_same(module.autoencoder, wae, 0)


def test_empty_balls_have_no_pair_weight():
    distance = torch.tensor([[1.0, 3.0], [10.0, 10.0]])
    weights = pair_weights(distance, torch.tensor([2.0, 4.0, 0.5]))
    expected = [[(1 / 2 + 1 / (4 * 2)) / 3, (1 / (4 * 2)) / 3], [0.0, 0.0]]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_radii_are_the_same_in_all_processes():
    module = OnManifoldRobustness(classifier(), autoencoder(), radii=500, smallest_radius=3.0)
    x = data()[0]
    with numbered((5,), range(6)):
        drawn = module.draw_radii(x)
        assert not torch.equal(module.draw_radii(x), drawn)
    with numbered((5,), range(6, 12)):
        assert torch.equal(module.draw_radii(x), drawn)
    assert drawn.min() == 3
    assert 14 < drawn.max() <= 16
    assert drawn.mean() == pytest.approx(8.3, abs=1)


@pytest.mark.parametrize("method", [OnManifoldRobustness, OnManifoldAdversarialTraining])
def test_the_autoencoder_never_changes(method, trained):
    x, y = data()
    module = fit(method(classifier(), autoencoder(), autoencoder_checkpoint=trained), x, y, max_epochs=3)
    assert_same(module.autoencoder, autoencoder(7).double(), 0)  # running statistics included
    assert not module.train().autoencoder.training
    assert all(not parameter.requires_grad for parameter in module.autoencoder.parameters())
    (optimizer,) = module.configure_optimizers()[0]
    moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert moved == {id(parameter) for parameter in module.classifier.parameters()}


class FixedAttack(LatentAttack):
    def start(self, codes):
        return codes + 0.01


def test_a_step_of_on_manifold_adversarial_training(trained):
    x, y = data()
    attack = FixedAttack(epsilon=0.3, steps=3, learning_rate=0.05)
    codes = autoencoder(7).double().eval().encode(x[1::2]).detach()
    safe_code = float(codes.abs().amax(1).sort().values[1]) + 1e-6  # two of three images
    module = OnManifoldAdversarialTraining(
        classifier(), autoencoder(), autoencoder_checkpoint=trained, attack=attack, safe_code=safe_code, optimizer=sgd
    )
    f, wae = copy.deepcopy(module.classifier).double(), autoencoder(7).double().eval()
    low, high, mixed = codes.amin(0), codes.amax(0), x.clone()
    for k, code in enumerate(codes):
        z = code.detach()
        if z.abs().max() <= safe_code:
            z = (z + 0.01).clamp(z - 0.3, z + 0.3).clamp(low, high).detach().requires_grad_()
            adam = torch.optim.Adam([z], lr=0.05)
            for _ in range(3):
                adam.zero_grad()
                (-F.cross_entropy(f(wae.decode(z[None])), y[2 * k + 1 : 2 * k + 2])).backward()
                adam.step()
                with torch.no_grad():
                    z.copy_(z.clamp(code - 0.3, code + 0.3).clamp(low, high))
        mixed[2 * k + 1] = wae.decode(z[None])[0].detach()
    f.zero_grad()
    clean, decoded = F.cross_entropy(f(mixed[::2]), y[::2]), F.cross_entropy(f(mixed[1::2]), y[1::2])
    descended(f, 0.5 * (clean + decoded))
    fit(module, x, y)
    assert_same(module.classifier, f, 1e-8)
    torch.testing.assert_close(module.code_low, low)
    torch.testing.assert_close(module.code_high, high)


def test_mmd_by_a_double_loop():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 3, generator=generator).double()
    std, scales = 1.5, (0.1, 0.2, 0.5, 1, 2, 5, 10)

    def kernel(u, v):
        constants = [s * 2 * 3 * std**2 for s in scales]
        return sum(c / (c + float((u - v).square().sum())) for c in constants)

    def within(part):
        return sum(kernel(part[i], part[j]) for i in range(7) for j in range(7) if i != j) / 42

    cross = sum(kernel(u, v) for u in a for v in b) / 49
    expected = within(a) + within(b) - 2 * cross
    assert float(maximum_mean_discrepancy(a, b, std)) == pytest.approx(expected, abs=1e-12)
    far = maximum_mean_discrepancy(a + 5, b, std)
    assert far > 1 > abs(expected)


def test_moments_of_the_prior_have_no_distance():
    codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * (3**0.5)
    assert float(moment_distance(codes, 2.0)) == pytest.approx(0, abs=1e-6)
    # mean (1, 0): 1 / 2; covariance diag(1, 1) where diag(4, 4) is expected: (9 + 9) / 4
    assert float(moment_distance(codes / 2 + torch.tensor([1.0, 0.0]), 2.0)) == pytest.approx(0.5 + 4.5, abs=1e-5)
    drawn = torch.randn(64, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = moment_distance(drawn, 1.0)
    torch.testing.assert_close(under_autocast, moment_distance(drawn, 1.0), rtol=1e-6, atol=0)


def wasserstein(**settings):
    plain = {"pretraining_batches": 0, "input_noise": 0.0, "optimizer": sgd}
    return WassersteinAutoencoder(autoencoder(), **(plain | settings))


def test_a_step_of_the_autoencoder():
    x, y = data()
    module = wasserstein(mmd_weight=0.5)
    wae = copy.deepcopy(module.autoencoder).double().train()
    fit(module, x, y)
    with numbered((module.run_seed(), 0, 0), range(6), 6):
        truncated_normal_like(x, 2.0)  # the input's noise, of std 0
        drawn = shared_randn((6, 3), x)
    codes = wae.encode(x)
    cost = 0.05 * (wae.decode(codes) - x).square().sum((1, 2, 3)).mean()
    descended(wae, cost + 0.5 * maximum_mean_discrepancy(codes, drawn, 1.0))
    assert_same(module.autoencoder, wae)


def test_pretraining_updates_the_encoder_alone():
    x, y = data()
    module = wasserstein(pretraining_batches=1)
    before = copy.deepcopy(module.autoencoder).double()
    fit(module, x, y)
    assert_same(module.autoencoder.decoder, before.decoder, 0)
    descended(before.encoder, moment_distance(before.train().encode(x), 1.0))
    assert_same(module.autoencoder.encoder, before.encoder)


def test_batches_of_one_image_are_refused():
    x, y = data()
    with pytest.raises(SettingError, match=r"^data: got 'a training batch of 1 image'; a single code has"):
        fit(wasserstein(), x[:1], y[:1])


def test_input_noise_is_in_training_alone():
    x, y = data()
    quiet, noisy = (fit(wasserstein(input_noise=noise), x, y) for noise in (0.0, 0.5))
    assert not torch.equal(quiet.autoencoder.encoder[0].weight, noisy.autoencoder.encoder[0].weight)
    noisy.eval()
    assert torch.equal(noisy(x), noisy(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OnManifoldRobustness(classifier(), autoencoder(), score_weight=-1), r"model\.score_weight: got -1"),
        (lambda: OnManifoldRobustness(classifier(), autoencoder(), sigma=0), r"model\.sigma: got 0"),
        (lambda: OnManifoldRobustness(classifier(), autoencoder(), num_samples=0), r"model\.num_samples: got 0"),
        (lambda: OnManifoldRobustness(classifier(), autoencoder(), radii=0), r"model\.radii: got 0"),
        (lambda: OnManifoldRobustness(classifier(), autoencoder(), smallest_radius=0), r"model\.smallest_radius"),
        (lambda: OnManifoldAdversarialTraining(classifier(), autoencoder(), safe_code=0), r"model\.safe_code: got 0"),
        (lambda: wasserstein(mmd_weight=-1), r"model\.mmd_weight: got -1"),
        (lambda: wasserstein(prior_std=0), r"model\.prior_std: got 0"),
        (lambda: wasserstein(reconstruction_weight=0), r"model\.reconstruction_weight: got 0"),
        (lambda: wasserstein(input_noise=-1), r"model\.input_noise: got -1"),
        (lambda: wasserstein(pretraining_batches=-1), r"model\.pretraining_batches: got -1"),
        (lambda: fit(OnManifoldRobustness(classifier(), autoencoder()), *data()), r"autoencoder_checkpoint: got None"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(SettingError, match=message):
        make()
