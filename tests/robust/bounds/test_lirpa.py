"""auto_LiRPA behind the verifier interface: exact, sound, and each of its measured traps closed."""

import copy
import gc
import importlib.util
import logging
import pickle
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.bounds import FeedForwardVerifier, LirpaVerifier, _lirpa_shims, lirpa
from robust.bounds.verifier import other_classes
from robust.errors import SettingError, UnsupportedLayerError
from robust.networks import Normalize
from robust.threat_models import Box, PixelBox
from tests.plain_bounds import plain_bounds
from tests.random_networks import corners_and_points, networks, random_case

needs_lirpa = pytest.mark.skipif(importlib.util.find_spec("auto_LiRPA") is None, reason="auto_LiRPA is not installed")
pytestmark = needs_lirpa
METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown")


class Block(nn.Module):
    """A residual block with batch-norm, as of ResNet."""

    def __init__(self, width, out, stride):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride)

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def seeded(build):
    torch.manual_seed(0)
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def conv_net(classes=4):
    layers = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten()]
    return seeded(lambda: nn.Sequential(*layers, nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, classes)))


def residual_net():
    def build():
        body = [Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]), nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), Block(4, 4, 1)]
        return nn.Sequential(*body, Block(4, 5, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))

    return seeded(build)


def case(batch=4, size=0.1, classes=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, mix = torch.rand(2, batch, 3, 6, 6, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (batch,), generator=generator), size * mix


def worst_sampled(network, x, y, budgets, count=150):
    """Smallest margins (B, K-1) and largest cross-entropy (B,) over random points and corners of the box."""
    points = corners_and_points(x, budgets, count)
    with torch.no_grad():
        logits = network(points.flatten(0, 1))
        labels = y.repeat(count)
        margins = logits.gather(1, labels[:, None]) - logits.gather(1, other_classes(labels, logits.shape[1]))
        loss = F.cross_entropy(logits, labels, reduction="none")
    return margins.view(count, len(y), -1).amin(0), loss.view(count, -1).amax(0)


def gradients(loss, network, budgets):
    return torch.autograd.grad(loss.sum(), [budgets, *network.parameters()], allow_unused=True)


# ---------------------------------------------------------------------------------------------- the bounds themselves


@settings(max_examples=15, deadline=None)
@given(networks, st.sampled_from([0.0, 0.03, 0.3]), st.sampled_from([1, 2, 3]))
def test_equals_the_plain_reference(network, size, batch):
    x, y, budgets = random_case(network, size, batch)
    box = PixelBox(budgets).interval(x)
    ibp, crown, fused_ibp, fused_crown = plain_bounds(network, box, y)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(LirpaVerifier(method="ibp").margins(network, box, y), ibp, **close)
    torch.testing.assert_close(LirpaVerifier().margins(network, box, y), crown, **close)
    torch.testing.assert_close(LirpaVerifier().cross_entropy(network, box, y, 0.0), fused_ibp, **close)
    torch.testing.assert_close(LirpaVerifier().cross_entropy(network, box, y), fused_crown, **close)


@pytest.mark.parametrize("crown_share", [0.0, 0.3, 1.0])
def test_loss_and_gradients_equal_the_own_verifiers(crown_share):
    network = conv_net()
    x, y, budgets = case()
    results = []
    for verifier in (LirpaVerifier(), FeedForwardVerifier()):
        budgets = budgets.detach().requires_grad_()
        loss = verifier.cross_entropy(network, PixelBox(budgets).interval(x), y, crown_share)
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [conv_net, residual_net])
def test_no_sampled_point_crosses_a_bound(build, method):
    network = build()
    verifier = LirpaVerifier(method=method, iterations=5)
    for size, batch in ((0.0, 2), (0.02, 3), (0.3, 2), (1.0, 1)):
        x, y, budgets = case(batch, size)
        box = PixelBox(budgets).interval(x)
        margins, loss = worst_sampled(network, x, y, budgets)
        assert (verifier.margins(network, box, y) <= margins + 1e-4).all()
        for share in (0.0, 0.5, 1.0):
            assert (verifier.cross_entropy(network, box, y, share) >= loss - 1e-4).all()


@pytest.mark.parametrize("build", [conv_net, residual_net])
def test_the_methods_become_tighter(build):
    network = build()
    x, y, budgets = case(3, 0.2)
    box = PixelBox(budgets).interval(x)
    means = [LirpaVerifier(method=method).margins(network, box, y).mean() for method in METHODS]
    # 0.3's alpha-CROWN optimises nothing on a torch whose clamp has gradient zero at its ends
    assert means[1] < means[2] - 1e-3 < means[3] - 2e-3


def test_crown_is_the_same_with_patches_and_with_matrices(monkeypatch):
    network = residual_net()
    results = []
    for exact in (True, False):
        monkeypatch.setattr(lirpa, "_exact_as_patches", lambda node, exact=exact: exact)
        for size in (0.01, 0.3, 1.0):
            x, y, budgets = case(3, size)
            budgets.requires_grad_()
            margins = LirpaVerifier(method="crown").margins(network, PixelBox(budgets).interval(x), y)
            results.append((margins, *gradients(margins, network, budgets)))
    torch.testing.assert_close(results[:3], results[3:], rtol=1e-4, atol=1e-4)


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
    expected = LirpaVerifier(method=method).margins(network, box, y)
    network[-1].bias = None
    torch.testing.assert_close(LirpaVerifier(method=method).margins(network, box, y), expected)


def grouped_and_dilated():
    return nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU()


def pooled():
    pool = nn.AvgPool2d((3, 2), (2, 1), (1, 0))
    return nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(4, 4, 2), nn.ReLU()


def max_pooled():
    return nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.LeakyReLU()


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


# ------------------------------------------------------------------------------- the caller's network stays as it was


def test_training_mode_is_kept_and_evaluation_statistics_are_used():
    network = nn.Sequential(*conv_net()[:6], nn.Dropout(0.5), *conv_net()[6:]).eval()
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    expected = LirpaVerifier().margins(network, box, y)
    state = copy.deepcopy(network.state_dict())
    network.train()
    network[1].eval()
    modes = [module.training for module in network.modules()]
    torch.testing.assert_close(LirpaVerifier().margins(network, box, y), expected)
    assert [module.training for module in network.modules()] == modes
    torch.testing.assert_close(dict(network.state_dict()), dict(state), rtol=0, atol=0)


def test_moved_buffers_are_seen():
    network, verifier = conv_net(), LirpaVerifier()
    network.insert(0, Normalize([0.5] * 3, [0.5] * 3))
    network[0].register_buffer("std", network[0].std, persistent=False)
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    before = verifier.margins(network, box, y)
    network.train()(x)  # moves the running statistics
    network[0].std.mul_(2)
    after = verifier.margins(network, box, y)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, FeedForwardVerifier("crown-ibp").margins(network, box, y), rtol=1e-4, atol=1e-5)


def test_statistics_may_move_between_the_bound_and_its_backward_pass():
    x, y, budgets = case()
    results = []
    for moved in (False, True):
        network = conv_net().train()
        loss = LirpaVerifier().cross_entropy(network, PixelBox(budgets).interval(x), y)
        if moved:
            network(x)  # in place, without autograd's notice
        results.append(torch.autograd.grad(loss.sum(), list(network.parameters())))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_first_use_between_a_forward_pass_and_its_backward_pass():
    # tracing overwrites, in place, the weights of the module that it traces
    network = conv_net().train()
    x, y, budgets = case()
    loss = F.cross_entropy(network(x), y)
    (loss + LirpaVerifier().cross_entropy(network, PixelBox(budgets).interval(x), y).sum()).backward()


@pytest.mark.parametrize("method", METHODS)
def test_requires_grad_and_gradients_are_left_alone(method):
    network = conv_net()
    network[0].requires_grad_(False)
    wanted = [p.requires_grad for p in network.parameters()]
    x, y, budgets = case()
    budgets.requires_grad_()
    for training in (True, False):
        network.train(training)
        verifier = LirpaVerifier(method=method, iterations=3)
        margins = verifier.margins(network, PixelBox(budgets).interval(x), y)
        loss = verifier.cross_entropy(network, PixelBox(budgets).interval(x), y)
        assert [p.requires_grad for p in network.parameters()] == wanted
        assert all(p.grad is None for p in [budgets, *network.parameters()])
        assert margins.requires_grad == (method != "alpha-crown")
        loss.sum().backward()
        assert [p.grad is not None for p in network.parameters()] == wanted
        network.zero_grad()
        budgets.grad = None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_first_use_in_evaluation_then_training(mode):
    network, verifier = nn.Sequential(Lambda(lambda x: (x - 0.5) * 3), *conv_net()), LirpaVerifier()
    x, y, budgets = case()
    with mode():
        margins = verifier.margins(network, PixelBox(budgets).interval(x * 1), y)
        optimised = LirpaVerifier(method="alpha-crown").margins(network, PixelBox(budgets).interval(x * 1), y * 1)
    assert not margins.requires_grad
    assert (optimised > margins).any()
    budgets.requires_grad_()
    loss = verifier.cross_entropy(network, PixelBox(budgets).interval(x), y)
    assert all(gradient is not None for gradient in gradients(loss, network, budgets))


def test_nothing_is_printed_and_no_global_state_changes(capfd, recwarn, monkeypatch):
    warnings.simplefilter("always")
    handler, records = logging.Handler(), []
    handler.emit = records.append
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    exporter = _lirpa_shims._exporter().GLOBALS
    monkeypatch.setattr(exporter, "export_onnx_opset_version", 15)
    network = nn.Sequential(*conv_net(), nn.Dropout(0.5)).eval()
    x, y, _ = case()
    state = torch.get_rng_state()
    for method in METHODS:
        LirpaVerifier(method=method, iterations=30).margins(network, Box(x, x), y)
    with pytest.raises(UnsupportedLayerError):
        LirpaVerifier().margins(nn.Sequential(nn.Flatten(), Lambda(lambda h: torch.cumprod(h, 1))), Box(x, x), y)
    assert torch.equal(torch.get_rng_state(), state)
    assert exporter.export_onnx_opset_version == 15
    assert (capfd.readouterr(), records, list(recwarn)) == (("", ""), [], [])


def test_importing_it_is_lazy_and_leaves_no_trace():
    code = """
import logging, sys, warnings
import torch
from robust.bounds import LirpaVerifier, _lirpa_shims
assert "auto_LiRPA" not in sys.modules
filters, handlers, recursion = warnings.filters[:], logging.getLogger().handlers[:], sys.getrecursionlimit()
_lirpa_shims.load()
assert warnings.filters == filters and logging.getLogger().handlers == handlers
assert sys.getrecursionlimit() == recursion
assert "numpy.lib.arraysetops" not in sys.modules
logging.basicConfig(format="%(message)s")
logging.getLogger().warning("mine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "mine\n")


# ------------------------------------------------------------------------------------------- what is kept between calls


def test_new_labels_of_the_same_batch_size_are_honoured():
    network, verifier = conv_net(), LirpaVerifier()
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    for labels in (y, (y + 1) % 4):
        margins, loss = verifier.margins(network, box, labels), verifier.cross_entropy(network, box, labels)
        torch.testing.assert_close(margins, LirpaVerifier().margins(network, box, labels), rtol=0, atol=0)
        torch.testing.assert_close(loss, LirpaVerifier().cross_entropy(network, box, labels), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_batch_size_may_change(method):
    network, verifier = residual_net(), LirpaVerifier(method=method, iterations=3)
    x, y, budgets = case(5)
    whole = verifier.margins(network, PixelBox(budgets).interval(x), y)
    for part in (slice(0, 1), slice(1, 4), slice(3, 5)):
        box = PixelBox(budgets[part]).interval(x[part])
        torch.testing.assert_close(verifier.margins(network, box, y[part]), whole[part], rtol=1e-4, atol=1e-5)
        loss = LirpaVerifier().cross_entropy(network, box, y[part])
        torch.testing.assert_close(verifier.cross_entropy(network, box, y[part]), loss, rtol=1e-5, atol=1e-5)


def test_image_size_may_change():
    network, verifier = residual_net(), LirpaVerifier()
    x, y, budgets = case()
    for size in (6, 4):
        box = PixelBox(budgets[..., :size]).interval(x[..., :size])
        expected = LirpaVerifier().margins(network, box, y)
        torch.testing.assert_close(verifier.margins(network, box, y), expected, rtol=0, atol=0)


def test_deep_networks():
    blocks = [block for _ in range(300) for block in (nn.Linear(4, 4), nn.ReLU())]
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 4), *blocks, nn.Linear(4, 4)))
    x, y, budgets = case()
    bounds = LirpaVerifier().margins(network, PixelBox(budgets).interval(x), y)
    assert (bounds <= worst_sampled(network, x, y, budgets)[0] + 1e-4).all()


def test_copies_and_pickles_follow_their_own_network():
    network, verifier = conv_net(), LirpaVerifier(method="crown")
    x, y, budgets = case()
    box = PixelBox(budgets.requires_grad_()).interval(x)
    before = verifier.margins(network, box, y)
    holder = nn.ModuleDict({"network": network})
    holder.verifier = verifier
    for twin in (copy.deepcopy(holder), pickle.loads(pickle.dumps(holder))):
        assert twin.verifier.method == "crown"
        torch.testing.assert_close(twin.verifier.margins(twin["network"], box, y), before, rtol=0, atol=0)
        nn.init.zeros_(twin["network"][-1].weight)
        changed = twin.verifier.margins(twin["network"], box, y)
        assert not torch.equal(changed, before)
        torch.testing.assert_close(verifier.margins(network, box, y), before, rtol=0, atol=0)


def test_new_weights_are_used_whichever_way_they_come():
    network, verifier = conv_net(), LirpaVerifier()
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    first = verifier.margins(network, box, y)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    state["8.bias"] += torch.arange(4)
    network.load_state_dict(state, assign=True)
    second = verifier.margins(network, box, y)
    assert (second - first).abs().min() > 0.5
    loss = verifier.cross_entropy(network, box, y).sum()
    assert all(g is not None for g in torch.autograd.grad(loss, list(network.parameters())))
    network[-1] = nn.Linear(6, 7)  # another structure: traced anew
    assert verifier.margins(network, box, y).shape == (4, 6)
    network[2] = nn.Identity()
    expected = LirpaVerifier().margins(network, box, y)
    torch.testing.assert_close(verifier.margins(network, box, y), expected, rtol=0, atol=0)


def test_another_device_gets_its_own_graph():
    network, verifier = conv_net(), LirpaVerifier()
    x, y, budgets = case()
    before = verifier.margins(network, PixelBox(budgets).interval(x), y)
    verifier.margins(network.double(), PixelBox(budgets).interval(x), y)
    verifier.margins(network.float(), PixelBox(budgets).interval(x), y)
    (graphs,) = verifier._graphs.values()
    assert len(graphs) == 2
    torch.testing.assert_close(verifier.margins(network, PixelBox(budgets).interval(x), y), before)


@pytest.mark.gpu
def test_moving_to_a_gpu_and_back():
    network, verifier = residual_net(), LirpaVerifier()
    x, y, budgets = case()
    before = verifier.margins(network, PixelBox(budgets).interval(x), y)
    on_gpu = verifier.margins(network.cuda(), PixelBox(budgets.cuda()).interval(x.cuda()), y.cuda())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), before, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(verifier.margins(network.cpu(), PixelBox(budgets).interval(x), y), before)


def test_the_batch_and_the_network_are_let_go():
    network, verifier = conv_net(), LirpaVerifier(method="crown")
    x, y, budgets = case()
    hook = Lambda(lambda gradient: gradient)  # lives as long as the autograd graph
    budgets = budgets.requires_grad_() * 1
    budgets.register_hook(hook)
    verifier.margins(network, PixelBox(budgets).interval(x), y)
    verifier.cross_entropy(network, PixelBox(budgets).interval(x), y)
    graph, parameter = weakref.ref(hook), weakref.ref(network[0].weight)
    budgets, hook = None, None
    gc.collect()
    assert graph() is None
    network = None
    gc.collect()
    assert parameter() is None
    assert not verifier._graphs


def test_bfloat16_autocast_changes_nothing():
    network = conv_net()
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    verifiers = [LirpaVerifier(method=method, iterations=3) for method in METHODS]
    expected = [(v.margins(network, box, y), v.cross_entropy(network, box, y, 0.5)) for v in verifiers]
    fresh = [LirpaVerifier(method=method, iterations=3) for method in METHODS]
    with torch.autocast("cpu", torch.bfloat16):
        actual = [(v.margins(network, box, y), v.cross_entropy(network, box, y, 0.5)) for v in fresh]
        half = [v.margins(network, Box(*(side.bfloat16() for side in box)), y).dtype for v in fresh]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert half == [torch.float32] * 4


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_network_that_cannot_be_traced_is_named_with_its_operation():
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    network = nn.Sequential(nn.Flatten(), Lambda(lambda h: torch.cumprod(h, 1)), nn.Linear(108, 4))
    with pytest.raises(UnsupportedLayerError, match=r"Sequential: got 'cumprod'; auto_LiRPA cannot trace it$"):
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
    compute = lirpa._Graph._compute
    monkeypatch.setattr(lirpa._Graph, "_compute", lambda self, **a: [side + 1 for side in compute(self, **a)])
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
