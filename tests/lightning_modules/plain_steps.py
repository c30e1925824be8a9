"""A small problem, and plain steps with which one step of a method is compared."""

import copy

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from robust.attacks import PGD

EPSILON, RATE = 0.1, 0.05


class FixedStart(PGD):
    """PGD from a deterministic start."""

    def _started(self, threat_model, x):
        pattern = torch.linspace(0, 40, x[0].numel(), device=x.device).sin().view_as(x[:1])
        return threat_model.project(x + 0.3 * threat_model.radius * pattern, x)


def network(channels=4):
    """A small network; with 10 channels and more, the gradient to its images is computed the fast way."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, channels, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(9 * channels, 5))


def data(count=8):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.randint(5, (count,), generator=generator)


def sgd(params):
    return torch.optim.SGD(params, lr=RATE)


def one_step(module, x, y):
    """The classifier after one batch."""
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **options)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=len(x)))
    assert trainer.global_step == 1
    return module.classifier


def descended(classifier, risk):
    """A copy of the classifier after one step of gradient descent on the risk."""
    classifier = copy.deepcopy(classifier)
    gradients = torch.autograd.grad(risk(classifier), list(classifier.parameters()))
    with torch.no_grad():
        for weight, gradient in zip(classifier.parameters(), gradients, strict=True):
            weight -= RATE * gradient
    return classifier


def assert_same(one, other, tolerance=1e-12):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert (a - b).abs().max() <= tolerance


def ascended(classifier, x, loss, steps, step, start):
    """Plain signed gradient ascent in the linf ball."""
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(classifier(x_adv)).sum(), x_adv)
        x_adv = (x_adv.detach() + step * gradient.sign()).clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
    return x_adv.detach()


def start_of(x):
    pattern = torch.linspace(0, 40, x[0].numel()).sin().view_as(x[:1])
    return (x + 0.3 * EPSILON * pattern).clamp(0, 1)
