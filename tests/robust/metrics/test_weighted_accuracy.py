"""Accuracies against their definitions."""

import pytest
import torch

from robust.metrics import Accuracy, WeightedAccuracy

MARGINS = torch.tensor([0.9, 0.5, 0.1, -0.6])
ALPHAS = [0.0, 1.0, 2.0]


def test_the_oracle_of_the_weighted_minimax_paper():
    metric = WeightedAccuracy(ALPHAS)
    metric.update(MARGINS, MARGINS > 0)
    accuracy = metric.compute()["accuracy"]
    assert accuracy.dtype == torch.float64
    assert accuracy.tolist() == pytest.approx([0.75, 0.5128, 0.2894], abs=5e-5)


def test_sums_are_over_the_whole_test_set_not_means_of_batches():
    torch.manual_seed(0)
    margins = torch.rand(101) * 2 - 1
    metric = WeightedAccuracy(ALPHAS)
    for batch in margins.split(40):
        metric.update(batch, batch > 0)
    weights = (-torch.tensor(ALPHAS)[:, None] * margins).exp().double()
    torch.testing.assert_close(metric.compute()["accuracy"], (weights * (margins > 0)).sum(1) / weights.sum(1))
    torch.testing.assert_close(
        metric.compute()["effective_samples"], weights.sum(1) ** 2 / (weights**2).sum(1), rtol=1e-6, atol=0
    )
    assert metric.compute()["effective_samples"][0] == 101


def test_accuracy_counts_verdicts():
    metric = Accuracy(num_samples=5)
    metric.update(torch.tensor([5, 0, 3]))
    metric.update(torch.tensor([1]))
    assert metric.compute().item() == pytest.approx(9 / 20)
    plain = Accuracy()
    plain.update(torch.tensor([True, False, True]))
    assert plain.compute().item() == pytest.approx(2 / 3)
