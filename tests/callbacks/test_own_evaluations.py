"""Evaluations of one's own."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.classification import MulticlassRecall

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


class PerClass(Evaluation):
    """Logs an accuracy for each class, and a mapping of metrics."""

    def evaluate(self, module, x, y):
        predicted = module(x).argmax(1)
        self.update("recall", partial(MulticlassRecall, 10, average=None), predicted, y)
        self.update("both", Both, predicted == y)


class Both(SumMetric):
    """The number of correct images under two names."""

    def compute(self):
        return {"once": super().compute(), "twice": 2 * super().compute()}


def test_metrics_of_several_values_are_logged_one_by_one():
    """Regression: they ended in a traceback after the whole test."""
    metrics = evaluated(PerClass())
    assert {f"test/recall/{label}" for label in range(10)} < metrics.keys()
    assert metrics["test/both/twice"] == 2 * metrics["test/both/once"]
