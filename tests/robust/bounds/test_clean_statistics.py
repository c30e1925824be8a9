"""Bounds in training: by the statistics of the clean batch, regularised, from weights that keep intervals' width."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules import ContextualBudgets
from robust.bounds import (
    FeedForwardVerifier,
    LirpaVerifier,
    clean_statistics,
    in_place_of_running,
    interval_regulariser,
)
from robust.errors import SettingError, UnsupportedLayerError
from robust.networks import CNN7, ResNetB, initialise_for_intervals
from robust.threat_models import Box, LinfBall
from tests.lirpa_cases import needs_lirpa

SHAPE = (1, 6, 5)


def network(seed=0):
    torch.manual_seed(seed)
    return ResNetB(SHAPE, 3, width=2, batch_norm=True).double().train()


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, *SHAPE, generator=generator).double(), torch.arange(5) % 3


def running(network):
    return [b.clone() for name, b in network.named_buffers() if "running" in name]


@pytest.mark.parametrize("verifier", [FeedForwardVerifier(), pytest.param(LirpaVerifier(), marks=needs_lirpa)])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_box_of_radius_zero_has_the_loss_and_the_gradients_of_the_pass_in_training_mode(verifier, weight):
    net, (x, y) = network(), batch()
    with clean_statistics(net) as statistics:
        loss = F.cross_entropy(net(x), y, reduction="none")
    moved = running(net)
    with in_place_of_running(statistics):
        bound = verifier.cross_entropy(net, Box(x, x), y, weight)
    torch.testing.assert_close(bound, loss, rtol=1e-6, atol=1e-6)
    assert all(map(torch.equal, running(net), moved))
    assert not any(buffer.requires_grad for buffer in net.buffers())
    if isinstance(verifier, LirpaVerifier):
        return  # it takes the statistics as constants
    wanted = torch.autograd.grad(loss.sum(), list(net.parameters()), retain_graph=True)
    given = torch.autograd.grad(bound.sum(), list(net.parameters()))
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Frozen(nn.Module):
    """A part that the forward pass keeps from the gradient, and a layer behind it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        self.last = nn.Linear(24, 3)

    def forward(self, x):
        return self.last(self.first(x).detach().flatten(1))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_weights_that_the_pass_freezes_have_no_gradient(weight):
    torch.manual_seed(0)
    net, (x, y) = Frozen().double().train(), batch()
    with clean_statistics(net) as statistics:
        net(x)
    with in_place_of_running(statistics):
        bound = FeedForwardVerifier().cross_entropy(net, LinfBall(0.1).interval(x), y, weight)
    gradients = torch.autograd.grad(bound.sum(), list(net.parameters()), allow_unused=True)
    trained = [name for (name, _), given in zip(net.named_parameters(), gradients, strict=True) if given is not None]
    assert trained == ["last.weight", "last.bias"]


def test_evaluation_mode_has_no_clean_statistics():
    net, (x, y) = network().eval(), batch()
    box = LinfBall(0.1).interval(x)
    with clean_statistics(net) as statistics:
        net(x)
    assert statistics == {}
    before = FeedForwardVerifier().margins(net, box, y)
    with in_place_of_running(statistics):
        assert torch.equal(FeedForwardVerifier().margins(net, box, y), before)


def test_a_layer_that_is_passed_twice_is_refused():
    norm = nn.BatchNorm2d(1)
    net = nn.Sequential(norm, nn.ReLU(), norm)
    message = r"network layer '0': got 'BatchNorm2d\(1.*a pass goes through it twice"
    with pytest.raises(UnsupportedLayerError, match=message), clean_statistics(net):
        net(torch.rand(3, 1, 2, 2))
    assert not norm._forward_pre_hooks


def module(**settings):
    def sgd(params):
        return torch.optim.SGD(params, lr=0.1)

    return ContextualBudgets(
        network(), epsilon=0.1, gradient_clip=None, optimizer=sgd, verifier=FeedForwardVerifier(), **settings
    )


@pytest.mark.parametrize("natural_weight", [None, 0.5])
def test_a_step_makes_one_clean_pass_and_takes_its_statistics(natural_weight):
    model, (x, y) = module(natural_weight=natural_weight, interval_weight=0.5), batch()
    plain = network()
    model.ramp = 0.5
    loss = model._robust_loss(x, y)

    with clean_statistics(plain) as statistics:
        natural = F.cross_entropy(plain(x), y)
    box = LinfBall(0.05).interval(x)
    with in_place_of_running(statistics):
        expected = FeedForwardVerifier().cross_entropy(plain, box, y, 0.5).mean()
        regulariser = interval_regulariser(plain, box)
    kappa = 0.0 if natural_weight is None else 0.75
    expected = (1 - kappa) * expected + kappa * natural + 0.25 * regulariser
    torch.testing.assert_close(loss, expected)
    counts = [b.item() for name, b in model.classifier.named_buffers() if "tracked" in name]
    assert counts == [1] * len(counts)
    assert all(map(torch.equal, running(model.classifier), running(plain)))


@torch.no_grad()
def plain_regulariser(layers, box, tau):
    """Of a chain of layers, with lower and upper ends and loops."""
    lower, upper = box
    initial, total, count = float((upper - lower).mean()) / 2, 0.0, 0
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            width = float((upper - lower).mean()) / 2
            total += max(0.0, tau - initial / width) / tau
            middles = ((lower + upper) / 2).flatten().tolist()
            mean = sum(middles) / len(middles)
            sides = [low > 0 for low in lower.flatten()], [high < 0 for high in upper.flatten()]
            for sizes in ([abs(c) for c in middles], [(c - mean) ** 2 for c in middles]):
                one, other = (sum(itertools.compress(sizes, side)) for side in sides)
                total += max(0.0, tau - min(one, other) / max(one, other, 1e-12)) / tau
            count += 1
            lower, upper = lower.clamp(min=0), upper.clamp(min=0)
        elif isinstance(layer, nn.Linear):
            positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
            ends = (lower @ positive.T + upper @ negative.T, upper @ positive.T + lower @ negative.T)
            lower, upper = (end + layer.bias for end in ends)
        else:
            lower, upper = layer(lower), layer(upper)
    return total / count


@pytest.mark.parametrize("seed", range(4))
def test_the_regularisers_equal_a_plain_computation(seed):
    torch.manual_seed(seed)
    widths = (30, 12, 9, 3)
    layers = [nn.Flatten()]
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).double()
    box = LinfBall(0.01 * 4**seed).interval(torch.rand(4, *SHAPE).double())
    for tau in (0.5, 0.9):
        given = interval_regulariser(net, box, tau)
        assert given.item() == pytest.approx(plain_regulariser(net, box, tau), rel=1e-6)
    gradients = torch.autograd.grad(given, [layer.weight for layer in (net[1], net[3])], allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_regularisers_over_processes_are_those_of_the_global_batch():
    """Two threads for two processes; tests/test_processes.py has the gradients of two."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(30, 9), nn.ReLU(), nn.Linear(9, 3)).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    boxes = [LinfBall(size).interval(torch.rand(3, *SHAPE).double()) for size in (0.05, 0.2)]
    whole = Box(*(torch.cat(sides) for sides in zip(*boxes, strict=True)))
    barrier, parts = threading.Barrier(2, timeout=60), [None, None]

    def mean(rank, value):
        parts[rank] = value.detach()
        barrier.wait()
        result = torch.stack(parts).mean(0)
        barrier.wait()
        return result

    def of_part(rank):
        return interval_regulariser(nets[rank], boxes[rank], 0.9, partial(mean, rank)).item()

    with ThreadPoolExecutor(2) as threads:
        given = list(threads.map(of_part, range(2)))
    expected = interval_regulariser(nets[0], whole, 0.9).item()
    assert given == pytest.approx([expected, expected], rel=1e-9)
    alone = [interval_regulariser(net, box, 0.9).item() for net, box in zip(nets, boxes, strict=True)]
    assert sum(alone) / 2 != pytest.approx(expected, rel=1e-3)


def test_intervals_keep_their_width_from_layer_to_layer():
    torch.manual_seed(0)
    convolutions = [nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU()) for _ in range(3)]
    net = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), *convolutions, nn.Flatten(), nn.Linear(64, 2))
    last = net[-1].weight.clone()
    box = LinfBall(0.01).interval(torch.rand(2, 16, 9, 9))
    before = interval_regulariser(net, box, 0.25)
    initialise_for_intervals(net)
    assert torch.equal(net[-1].weight, last)
    for layer in (net[0], net[2][0]):
        fan_in = layer.in_channels * 9
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / fan_in, rel=0.05)
    widths, h = [0.01], box
    for layer in net[:-2].modules():
        if isinstance(layer, nn.Conv2d):
            center, radius = layer((h.lower + h.upper) / 2), F.conv2d((h.upper - h.lower) / 2, layer.weight.abs())
            widths.append(radius.mean().item())
            h = Box((center - radius).relu(), (center + radius).relu())
    assert all(0.6 < wide / narrow < 2.3 for narrow, wide in itertools.pairwise(widths))
    assert interval_regulariser(net, box, 0.25) < before


def test_settings_out_of_range_are_refused():
    net, (x, _) = network(), batch()
    with pytest.raises(SettingError, match=r"tolerance: got 0; give a value in \(0, 1\]"):
        interval_regulariser(net, LinfBall(0.1).interval(x), 0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(30, 3)).double()
    with pytest.raises(SettingError, match=r"network: got 'Sequential'; it has no ReLU"):
        interval_regulariser(linear, LinfBall(0.1).interval(x))
    with pytest.raises(SettingError, match=r"network: got 'Sequential'; give one of two convolutions or linear layers"):
        initialise_for_intervals(linear)
    pruned = nn.Sequential(nn.Flatten(), nn.Linear(30, 3), nn.Linear(3, 3))
    nn.utils.parametrizations.weight_norm(pruned[1])
    with pytest.raises(SettingError, match=r"got '.*Linear.*'; initialise it before its weights are pruned"):
        initialise_for_intervals(pruned)
    with pytest.raises(SettingError, match=r"model.interval_weight: got -1; give a weight of 0 or above"):
        module(interval_weight=-1)


def test_the_initialisation_is_a_setting_and_off_by_default():
    assert torch.equal(module().classifier.stem[0].weight, network().stem[0].weight)
    drawn = module(interval_initialisation=True).classifier
    assert not torch.equal(drawn.stem[0].weight, network().stem[0].weight)
    assert torch.equal(drawn.logits.weight, network().logits.weight)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CNN7(width=0), r"width: got 0; give at least 1 channel"),
        (lambda: CNN7(features=0), r"features: got 0; give at least 1"),
        (lambda: CNN7(mean=[0.5]), r"std: got None; give mean and std together"),
        (lambda: ResNetB(blocks=3), r"blocks: got 3; give 2 or 4"),
        (lambda: ResNetB(width=0), r"width: got 0; give at least 1 channel"),
        (lambda: ResNetB((1, 1, 1)), r"image_shape: got \(1, 1, 1\); give"),
        (lambda: ResNetB(num_classes=1), r"num_classes: got 1; give at least 2 classes"),
    ],
)
def test_networks_refuse_settings_out_of_range(build, message):
    with pytest.raises(SettingError, match=message):
        build()


def test_the_networks_have_the_papers_parameters():
    def count(network):
        return sum(parameter.numel() for parameter in network.parameters())

    with torch.device("meta"):
        sizes = [count(CNN7()), count(CNN7((3, 32, 32))), count(ResNetB()), count(ResNetB(blocks=4, width=16))]
    assert sizes == [13_259_338, 17_192_650, 112_006, 123_734]
    assert CNN7((1, 5, 6), width=2, features=3).eval()(torch.rand(2, 1, 5, 6)).shape == (2, 10)
    normalised = ResNetB((2, 7, 5), 4, blocks=4, width=2, mean=[0.5] * 2, std=[0.25] * 2)
    assert normalised(torch.rand(3, 2, 7, 5)).shape == (3, 4)
