"""Metrics of robustness scores: order, duplicates, and merged processes."""

import pytest
import torch

from robust.metrics import Gathered, SampledScore


def test_rows_come_back_in_the_datas_order():
    table = Gathered(["margin", "code"])
    margins, codes = torch.rand(7), torch.rand(7, 2)
    for rows in ([4, 0], [6, 2, 5], [1, 3]):
        table.update(torch.tensor(rows), margins[rows], codes[rows])
    found = table.compute()
    assert torch.equal(found["index"], torch.arange(7))
    assert torch.equal(found["margin"], margins)
    assert torch.equal(found["code"], codes)


def test_a_single_row_is_a_row():
    table = Gathered(["margin", "image"])
    table.update(torch.tensor([4]), torch.tensor([0.5]), torch.ones(1, 1, 2))
    shapes = {name: tuple(values.shape) for name, values in table.rows().items()}
    assert shapes == {"index": (1,), "margin": (1,), "image": (1, 1, 2)}


def test_an_example_that_comes_twice_is_an_error():
    table = Gathered(["margin"])
    table.update(torch.tensor([0, 1]), torch.rand(2))
    table.update(torch.tensor([1]), torch.rand(1))
    with pytest.raises(RuntimeError, match="an example was evaluated twice"):
        table.compute()


def test_score_is_the_mean_over_images_and_radii():
    epsilons = torch.tensor([0.5, 1.0, 4.0])
    robustness = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)) / epsilons
    metric = SampledScore(epsilons, 1 / epsilons, diameter=5.0)
    for part in (robustness[:7], robustness[7:]):
        metric.update(part)
    found = metric.compute()
    mean = float(robustness.double().mean())
    assert found["mean"] == pytest.approx(mean)
    assert found["integral"] == pytest.approx(5 * mean)
    assert found["normalized"] == pytest.approx(mean / (3.25 / 3))
    torch.testing.assert_close(found["curve"], robustness.double().mean(0))
