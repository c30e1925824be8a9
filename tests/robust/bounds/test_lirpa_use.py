"""auto_LiRPA behind the verifier interface: the caller's network stays as it was, and what is kept between calls."""

import copy
import gc
import logging
import pickle
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust.bounds import FeedForwardVerifier, LirpaVerifier, _lirpa_shims
from robust.errors import SettingError, UnsupportedLayerError
from robust.networks import Normalize
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
from tests.random_networks import Lambda

pytestmark = needs_lirpa


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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


def test_new_labels_of_the_same_batch_size_are_honoured():
    network, verifier = conv_net(), LirpaVerifier()
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    for labels in (y, (y + 1) % 4):
        margins, loss = verifier.margins(network, box, labels), verifier.cross_entropy(network, box, labels)
        torch.testing.assert_close(margins, LirpaVerifier().margins(network, box, labels), rtol=0, atol=0)
        torch.testing.assert_close(loss, LirpaVerifier().cross_entropy(network, box, labels), rtol=0, atol=0)


@pytest.mark.thorough_but("crown")
@pytest.mark.parametrize("method", METHODS)
def test_batch_size_may_change(method):
    network, verifier = residual_net(), LirpaVerifier(method=method, iterations=3)
    x, y, budgets = case(5)
    whole = verifier.margins(network, PixelBox(budgets).interval(x), y)
    for part in (slice(0, 1), slice(2, 5)):
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_bfloat16_autocast_changes_nothing():
    network = conv_net()
    x, y, budgets = case()
    box = PixelBox(budgets).interval(x)
    verifiers = [LirpaVerifier(method=method, iterations=3) for method in METHODS]
    expected = [(v.margins(network, box, y), v.cross_entropy(network, box, y, 0.5)) for v in verifiers]
    fresh = [LirpaVerifier(method=method, iterations=3) for method in METHODS]
    with torch.autocast("cpu", torch.bfloat16):
        actual = [(v.margins(network, box, y), v.cross_entropy(network, box, y, 0.5)) for v in fresh]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    for verifier in verifiers:
        with pytest.raises(SettingError, match=r"box: got 'torch.bfloat16'"):
            verifier.margins(network, Box(*(side.bfloat16() for side in box)), y)


class Centred(nn.Module):
    """Logits less half of their mean over the batch."""

    def forward(self, x):
        logits = x.flatten(1)[:, :3]
        return logits - logits.mean(0, keepdim=True) / 2


def test_a_network_that_mixes_the_images_of_a_batch_is_refused():
    """Regression: its margins depended on the size of the batches."""
    x, y, budgets = case()
    with pytest.raises(UnsupportedLayerError, match="an image's logits depend on the others in its batch"):
        LirpaVerifier().margins(Centred(), PixelBox(budgets).interval(x), y)
