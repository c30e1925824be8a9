"""The fraction of the budgets' variance that all images have in common, against a plain computation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robust.metrics import CommonVariance


@settings(max_examples=30, deadline=None)
@given(images=st.integers(2, 6), pixels=st.integers(2, 5), scale=st.floats(0.01, 10), seed=st.integers(0, 99))
def test_equals_a_plain_analysis_of_variance(images, pixels, scale, seed):
    logs = scale * np.random.default_rng(seed).standard_normal((images, pixels))
    expected = logs.mean(0).var() / logs.var()
    metric = CommonVariance((1, 1, pixels))
    for part in np.array_split(logs, 2):
        metric.update(torch.from_numpy(np.exp(part)).view(-1, 1, 1, pixels))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(metric.common().flatten(), np.exp(logs.mean(0)), rtol=1e-9)


@pytest.mark.parametrize("size", [1e-8, 0.1, 1.0])
def test_uniform_budgets_are_common(size):
    metric = CommonVariance((1, 2, 2))
    metric.update(torch.full((3, 1, 2, 2), size))
    assert metric.compute() == 1


def test_the_common_map_keeps_the_volume():
    generator = torch.Generator().manual_seed(0)
    logs = torch.randn(5, 1, 3, 3, generator=generator, dtype=torch.double)
    logs -= logs.flatten(1).mean(1)[:, None, None, None]
    metric = CommonVariance((1, 3, 3))
    metric.update((logs + np.log(0.1)).exp())
    assert metric.common().log().mean().exp().item() == pytest.approx(0.1)
