"""Cross-Lipschitz regularisation: the penalty compared with a double loop over classes, and the step."""

import copy

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import CrossLipschitz
from robust.errors import SettingError
from robust.losses import cross_lipschitz


def network(norm=False):
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(36, 5)]
    if norm:
        layers.insert(1, nn.BatchNorm2d(4))
        layers.insert(4, nn.Dropout(0.5))
    return nn.Sequential(*layers).double()


def data(count=6):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 1, 8, 8, generator=generator).double(), torch.randint(5, (count,), generator=generator)


def double_loop(f, image):
    """1 / K^2 sum_{l,m} |grad f_l - grad f_m|^2 of one image, each gradient on its own; differentiable."""
    at = image[None].clone().requires_grad_()
    gradients = [torch.autograd.grad(f(at)[0, k], at, create_graph=True)[0] for k in range(5)]
    return sum((one - other).square().sum() for one in gradients for other in gradients) / 25


def test_the_penalty_equals_a_double_loop():
    f, (x, _) = network(), data()
    x.requires_grad_()
    expected = torch.stack([double_loop(f, image.detach()) for image in x])
    torch.testing.assert_close(cross_lipschitz(f(x), x), expected, rtol=1e-12, atol=0)
    assert expected.min() > 0


@pytest.mark.parametrize(("fraction", "every"), [(1.0, 1), (0.3, 3)])
def test_a_step_takes_the_penalty_in_evaluation_mode(fraction, every):
    f, (x, y) = network(norm=True), data()
    f[4].p = 0.0  # the plain pass below would draw another mask
    module = CrossLipschitz(
        copy.deepcopy(f), penalty_weight=0.5, penalty_fraction=fraction, optimizer=lambda p: SGD(p, lr=0.05)
    )
    natural = F.cross_entropy(f.train()(x), y)
    loss = natural + 0.5 * torch.stack([double_loop(f.eval(), image) for image in x[::every]]).mean()
    for weight, gradient in zip(f.parameters(), torch.autograd.grad(loss, list(f.parameters())), strict=True):
        weight.data -= 0.05 * gradient
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **options)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=6))
    for name, value in f.state_dict().items():
        torch.testing.assert_close(
            module.classifier.state_dict()[name], value, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(
    ("setting", "value"), [("penalty_weight", -1), ("penalty_fraction", 0), ("penalty_fraction", 1.5)]
)
def test_wrong_settings(setting, value):
    with pytest.raises(SettingError, match=rf"model\.{setting}: got {value}"):
        CrossLipschitz(network(), **{setting: value})
