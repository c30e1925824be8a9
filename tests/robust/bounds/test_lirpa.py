"""auto_LiRPA behind the verifier interface: its bounds are exact, sound and differentiable; errors."""

import copy
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.bounds import FeedForwardVerifier, LirpaVerifier, _lirpa_graph, _lirpa_shims
from robust.bounds._lirpa_graph import LirpaGraph
from robust.errors import SettingError, UnsupportedLayerError
from robust.threat_models import Box, PixelBox
from tests.lirpa_cases import (
    METHODS,
    case,
    conv_net,
    gradients,
    needs_lirpa,
    residual_net,
    seeded,
    worst_sampled,
)
from tests.plain_bounds import plain_bounds
from tests.random_networks import Lambda, networks, random_case

pytestmark = needs_lirpa


@settings(max_examples=3, deadline=None)
@given(networks, st.sampled_from([0.0, 0.03, 0.3]), st.sampled_from([1, 2, 3]))
def test_equals_the_plain_reference(network, size, batch):
    x, y, budgets = random_case(network, size, batch)
    box = PixelBox(budgets).interval(x)
    ibp, crown, fused_ibp, fused_crown = plain_bounds(network, box, y)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(LirpaVerifier(method="ibp").margins(network, box, y), ibp, **close)
    verifier = LirpaVerifier()
    torch.testing.assert_close(verifier.margins(network, box, y), crown, **close)
    torch.testing.assert_close(verifier.cross_entropy(network, box, y, 0.0), fused_ibp, **close)
    torch.testing.assert_close(verifier.cross_entropy(network, box, y), fused_crown, **close)


@pytest.mark.parametrize("crown_weight", [0.0, 0.3, 1.0])
def test_loss_and_gradients_equal_the_own_verifiers(crown_weight):
    network = conv_net()
    x, y, budgets = case()
    results = []
    for verifier in (LirpaVerifier(), FeedForwardVerifier()):
        budgets = budgets.detach().requires_grad_()
        loss = verifier.cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight)
        results.append((loss, *gradients(loss, network, budgets)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().sum() > 0 for gradient in results[0][1:])


def test_fused_loss_equals_lirpas_own_loss_fusion():
    network = conv_net()
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    auto_lirpa = _lirpa_shims.load()
    with _lirpa_shims.tracing():
        wrapped = auto_lirpa.CrossEntropyWrapper(copy.deepcopy(network)).eval()
        fused = auto_lirpa.BoundedModule(wrapped, (x[:2], y[:2]), bound_opts={"loss_fusion": True})
    fused(x, y)
    ball = auto_lirpa.PerturbationLpNorm(norm=float("inf"), x_L=box.lower, x_U=box.upper)
    inputs = (auto_lirpa.BoundedTensor(x, ball), y)
    upper = fused.compute_bounds(x=inputs, method="CROWN-IBP", bound_lower=False)[1]
    shift = next(node for node in fused._modules.values() if type(node).__name__ == "BoundExp").max_input
    expected = (upper.log() + shift).squeeze(1)
    torch.testing.assert_close(LirpaVerifier().cross_entropy(network, box, y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough_but("residual_net-ibp")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [conv_net, residual_net])
def test_no_sampled_point_crosses_a_bound(build, method):
    network = build()
    verifier = LirpaVerifier(method=method, iterations=2)
    for size, batch in ((0.0, 2), (0.05, 2), (0.3, 2)):
        x, y, budgets = case(batch, size)
        box = PixelBox(budgets).interval(x)
        margins, loss = worst_sampled(network, x, y, budgets)
        assert (verifier.margins(network, box, y) <= margins + 1e-4).all()
        for weight in (0.0, 0.5, 1.0):
            assert (verifier.cross_entropy(network, box, y, weight) >= loss - 1e-4).all()


@pytest.mark.thorough
@pytest.mark.parametrize("build", [conv_net, residual_net])
def test_alpha_crown_optimises(build):
    """0.3's optimises nothing on a torch whose clamp has gradient zero at its ends, but for our shim."""
    network = build()
    x, y, budgets = case(3, 0.2)
    box = PixelBox(budgets).interval(x)
    verifiers = [LirpaVerifier(method=method, iterations=8) for method in ("crown", "alpha-crown")]
    crown, alpha = (verifier.margins(network, box, y).mean() for verifier in verifiers)
    assert alpha > crown + 2e-3


@pytest.mark.thorough
def test_the_methods_become_tighter():
    """No theorem: so it is for this network."""
    network = residual_net()
    x, y, budgets = case(3, 0.2)
    box = PixelBox(budgets).interval(x)
    means = [LirpaVerifier(method=method, iterations=8).margins(network, box, y).mean() for method in METHODS]
    assert means[0] < means[1] - 0.1 < means[2] - 0.2 < means[3] - 0.3


@pytest.mark.thorough
def test_crown_is_the_same_with_patches_and_with_matrices(monkeypatch):
    network = residual_net()
    results = []
    for exact in (True, False):
        monkeypatch.setattr(_lirpa_graph, "_exact_as_patches", lambda node, exact=exact: exact)
        for size in (0.01, 0.3):
            x, y, budgets = case(2, size)
            budgets.requires_grad_()
            margins = LirpaVerifier(method="crown").margins(network, PixelBox(budgets).interval(x), y)
            results.append((margins, *gradients(margins, network, budgets)))
    torch.testing.assert_close(results[:2], results[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), (1,), ()])
@pytest.mark.parametrize("method", METHODS)
def test_constants_of_any_shape_and_any_batch_size(method, shape):
    # 0.3 sums rows on a buffer over the batch, silently where the batch size divides the channels
    class Affine(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.rand(shape) + 0.2)
            self.scale = nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return (x - self.mean) / self.mean * self.scale + self.scale

    def build():
        hidden = [Affine(), nn.Conv2d(3, 3, 3), nn.ReLU(), Affine(), nn.Conv2d(3, 3, 2), nn.ReLU()]
        return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(27, 3))

    network = seeded(build)
    verifier = LirpaVerifier(method=method, iterations=2)
    for batch in (1, 2, 3, 5):
        x, y, budgets = case(batch, 0.05, classes=3)
        bounds = verifier.margins(network, PixelBox(budgets).interval(x), y)
        assert (bounds <= worst_sampled(network, x, y, budgets, 50)[0] + 1e-4).all()
        exact = verifier.margins(network, Box(x, x), y)
        torch.testing.assert_close(exact, worst_sampled(network, x, y, 0 * x, 1)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_last_layer_without_bias_is_merged_too(method):
    network = conv_net()
    with torch.no_grad():
        network[-1].bias.zero_()
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    expected = LirpaVerifier(method=method, iterations=3).margins(network, box, y)
    network[-1].bias = None
    torch.testing.assert_close(LirpaVerifier(method=method, iterations=3).margins(network, box, y), expected)


def grouped_and_dilated():
    return nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU()


def pooled():
    pool = nn.AvgPool2d((3, 2), (2, 1), (1, 0))
    return nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(4, 4, 2), nn.ReLU()


def max_pooled():
    return nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.LeakyReLU()


@pytest.mark.thorough_but("list", "pooled")
@pytest.mark.parametrize("body", [list, grouped_and_dilated, pooled, max_pooled])
def test_other_layers_and_a_linear_network(body):
    network = seeded(lambda: nn.Sequential(*body(), nn.Flatten()))
    x, y, budgets = case()
    network.append(nn.Linear(network(x).shape[1], 4))
    margins, _ = worst_sampled(network, x, y, budgets)
    for method in METHODS[: 3 if body is max_pooled else 4]:  # 0.3 has no alpha-CROWN of max-pooling
        verifier = LirpaVerifier(method=method, iterations=3)
        assert (verifier.margins(network, PixelBox(budgets).interval(x), y) <= margins + 1e-4).all()


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_float64(method):
    network = conv_net().double()
    x, y, budgets = case(dtype=torch.float64)
    bounds = LirpaVerifier(method=method).margins(network, PixelBox(budgets).interval(x), y)
    assert bounds.dtype == torch.float64
    single = LirpaVerifier(method=method).margins(network.float(), PixelBox(budgets).interval(x), y)
    torch.testing.assert_close(bounds.float(), single, rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_be_traced_is_named_with_its_operation():
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    network = nn.Sequential(nn.Flatten(), Lambda(lambda h: torch.cumprod(h, 1)), nn.Linear(108, 4))
    with pytest.raises(
        UnsupportedLayerError,
        match=r"layer '1' \(Lambda\): got 'cumprod'; auto_LiRPA cannot trace it; replace that layer$",
    ):
        LirpaVerifier().margins(network, box, y)
    network = nn.Sequential(nn.Flatten(), nn.Softplus(), nn.Linear(108, 4))
    with pytest.raises(UnsupportedLayerError, match=r"Softplus.*; auto_LiRPA cannot bound it$"):
        LirpaVerifier(method="crown").margins(network, box, y)
    with pytest.raises(SettingError, match="logits must have shape"):
        LirpaVerifier().margins(nn.Conv2d(3, 4, 3), box, y)


def test_a_fixed_batch_size_is_found_at_first_use():
    x, y, budgets = case()
    flat = Lambda(lambda h: h.view(h.size(0), -1))
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), flat, nn.Linear(32, 4)))
    with pytest.raises(UnsupportedLayerError, match=r"fixes the batch size.*torch\.flatten"):
        LirpaVerifier().margins(network, PixelBox(budgets).interval(x), y)


def test_wrong_bounds_of_auto_lirpa_are_found_at_first_use(monkeypatch):
    compute = LirpaGraph._compute
    monkeypatch.setattr(LirpaGraph, "_compute", lambda self, **a: [side + 1 for side in compute(self, **a)])
    x, y, budgets = case()
    with pytest.raises(UnsupportedLayerError, match="are not its logits"):
        LirpaVerifier(method="ibp").margins(conv_net(), PixelBox(budgets).interval(x), y)


def test_a_missing_package_is_reported_with_its_remedy(monkeypatch):
    x, y, budgets = case()
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    _lirpa_shims._load.cache_clear()
    try:
        with pytest.raises(SettingError, match=r"uv sync.*pip install --no-deps auto_LiRPA==0\.3 appdirs pyyaml"):
            LirpaVerifier().margins(conv_net(), PixelBox(budgets).interval(x), y)
    finally:
        _lirpa_shims._load.cache_clear()


@pytest.mark.parametrize("wrong", [{"method": "crown_ibp"}, {"iterations": 0}, {"learning_rate": 0.0}])
def test_settings_are_checked(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        LirpaVerifier(**wrong)


def test_alpha_crown_wants_float32():
    x, y, budgets = case(dtype=torch.float64)
    with pytest.raises(SettingError, match="float32"):
        LirpaVerifier(method="alpha-crown").margins(conv_net().double(), PixelBox(budgets).interval(x), y)
