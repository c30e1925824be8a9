"""Evaluations of one's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import MeanMetric

from callbacks.evaluation.base import Evaluation
from datamodules import Digits
from lightning_modules import StandardTraining
from robust.errors import SettingError
from robust.metrics import Accuracy
from tests.callbacks.trained import trainer_with


class GradientNorm(Evaluation):
    """Mean size of the loss's gradient."""

    def __init__(self, enabled):
        super().__init__()
        self.enabled = enabled

    def evaluate(self, module, x, y):
        with torch.set_grad_enabled(self.enabled):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(module(x), y), x)
        self.update("gradient", MeanMetric, gradient.flatten(1).norm(dim=1))


class Clean(Evaluation):
    """Logs a metric under the name of the module's."""

    def evaluate(self, module, x, y):
        self.update("accuracy/clean", Accuracy, torch.zeros_like(y, dtype=torch.bool))


def evaluated(callback):
    module = StandardTraining(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    (metrics,) = trainer_with(callback, limit_test_batches=1).test(module, Digits(batch_size=8), verbose=False)
    return metrics


def test_gradients_are_computed_where_they_are_enabled():
    assert evaluated(GradientNorm(True))["test/gradient"] > 0
    with pytest.raises(SettingError, match=r"trainer.callbacks: got 'GradientNorm'; evaluations run without gradients"):
        evaluated(GradientNorm(False))


def test_the_modules_metric_is_not_replaced():
    """Regression: the record had the callback's value as the clean accuracy."""
    with pytest.raises(SettingError, match=r"^Clean.update: got 'accuracy/clean'; the module logs it"):
        evaluated(Clean())
