"""The own verifier bounds what the network computes now: modules used twice, hooks, pruning, parametrizations, rows."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from robust.bounds import FeedForwardVerifier, agreement
from robust.bounds.operations.maps import LinearMap
from robust.bounds.operations.registry import register
from robust.errors import SettingError, UnsupportedLayerError
from robust.networks import DMSmall, Normalize
from robust.threat_models import Box, LinfBall, PixelBox
from tests.random_networks import Lambda, corners_and_points

METHODS = ("ibp", "crown-ibp", "tightest")


def true_margins(network, x, y):
    """z_y - z_k for the other classes, (B, K-1)."""
    with torch.no_grad():
        logits = network(x)
    others = torch.ones_like(logits).scatter(1, y[:, None], 0).bool()
    return (logits.gather(1, y[:, None]) - logits)[others].view(len(x), -1)


def assert_exact_at_radius_zero(network, x):
    y = torch.randint(true_margins(network, x, torch.zeros(len(x)).long()).shape[1] + 1, (len(x),))
    for method in METHODS:
        margins = FeedForwardVerifier(method).margins(network, Box(x, x), y)
        torch.testing.assert_close(margins, true_margins(network, x, y), rtol=1e-4, atol=1e-4)


def assert_sound(network, x, size):
    y, budgets = network(x).argmax(1), size * torch.rand_like(x)
    points = corners_and_points(x, budgets, 40)
    reached = torch.stack([true_margins(network, point, y) for point in points]).amin(0)
    for method in METHODS:
        margins = FeedForwardVerifier(method).margins(network, PixelBox(budgets).interval(x), y)
        assert (margins <= reached + 1e-4 * (1 + reached.abs())).all()


@st.composite
def shared_networks(draw):
    """A network with modules that occur more than once, in nested sequences, linear layers on rows, odd shapes."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels, height, width = draw(st.sampled_from([(1, 5, 7), (2, 4, 3), (3, 1, 6), (1, 6, 1)]))
    relu, square = nn.ReLU(), nn.Linear(width, width)
    block = nn.Sequential(square, relu)
    parts = [draw(st.sampled_from([block, square, relu, nn.Sequential(block, square)])) for _ in range(3)]
    if draw(st.booleans()):
        convolution = nn.Conv2d(channels, channels, 3, padding=1)
        parts += [convolution, relu, convolution]
    if draw(st.booleans()):
        parts.insert(0, Normalize([0.4] * channels, [0.3] * channels))
    middle = nn.Linear(8, 8)
    head = [nn.Flatten(), nn.Linear(channels * height * width, 8), relu, middle, relu, middle, relu, nn.Linear(8, 3)]
    return nn.Sequential(*parts, *head).eval(), torch.rand(6, channels, height, width)


@pytest.mark.thorough
@settings(max_examples=30, deadline=None)
@given(shared_networks(), st.sampled_from([1e-3, 0.05, 0.5]))
def test_modules_that_are_used_twice_and_linear_layers_on_rows(case, size):
    network, x = case
    assert_exact_at_radius_zero(network, x)
    assert_sound(network, x, size)


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))


def move_weights(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(-1.5)


def test_pruned_and_parametrized_weights_are_those_of_the_forward_pass_and_learn():
    x, y = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    pruned, normed, spectral = plain(), plain(), plain()
    prune.l1_unstructured(pruned[1], "weight", 0.5)
    prune.random_unstructured(pruned[1], "bias", 0.5)
    parametrizations.weight_norm(normed[1])
    parametrizations.spectral_norm(spectral[3])
    for network in (pruned, normed, spectral.eval()):
        network(x)
        move_weights(network)
        assert_exact_at_radius_zero(network, x)
        for _ in range(2):  # a graph that was used up would be an error in the second step
            network.zero_grad()
            FeedForwardVerifier().cross_entropy(network, LinfBall(0.1).interval(x), y).sum().backward()
            assert all((p.grad is not None and p.grad.abs().sum() > 0) for p in network[1].parameters())


def test_a_weight_that_a_hook_computes_is_followed_with_its_gradient():
    network = plain()
    weight = network[1].weight
    del network[1]._parameters["weight"]
    network[1].raw = weight
    network[1].weight = weight.detach().clone()
    network[1].register_forward_pre_hook(lambda module, inputs: setattr(module, "weight", 2 * module.raw))
    x = torch.rand(2, 1, 4, 4)
    for _ in range(2):
        assert_exact_at_radius_zero(network, x)
        FeedForwardVerifier().cross_entropy(network, LinfBall(0.1).interval(x), torch.tensor([0, 1])).sum().backward()
        assert network[1].raw.grad.abs().sum() > 0
        move_weights(network)


class Doubled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked(where):
    network = plain()
    part = network if where == "network" else network[int(where)]
    part.register_forward_hook(lambda module, inputs, output: output + 0.01)
    return network


def forward_replaced():
    network = plain()
    network[2].forward = lambda x: x.clamp(min=0.1)
    return network


@pytest.mark.parametrize(
    "network",
    [
        hooked("1"),
        hooked("2"),
        hooked("network"),
        forward_replaced(),
        nn.Sequential(nn.Flatten(), Doubled(16, 3)),
    ],
)
def test_what_hooks_and_own_forwards_compute_is_followed(network):
    x = torch.rand(4, 1, 4, 4)
    assert_exact_at_radius_zero(network, x)
    assert_sound(network, x, 0.2)


def hidden(x):
    """Computes what no recording sees."""
    with torch._C.DisableTorchFunction():
        return 2 * x


class Doubling(torch.autograd.Function):
    """A function with a derivative of its own."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x


class Noisy(nn.Module):
    """Adds noise of the batch's shape, in evaluation mode too."""

    def forward(self, x):
        return x + torch.rand(len(x), 1)


class Wandering(nn.Module):
    """Calls another function in every pass."""

    def __init__(self):
        super().__init__()
        self.functions = iter([torch.relu, torch.sigmoid] * 9)

    def forward(self, x):
        return next(self.functions)(x)


def behind(part):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), part, nn.Linear(4, 3))


def clamped(x):
    x[:, 0].clamp_(max=30.0)  # by way of a view
    return x


def rectified(x):
    return F.relu_(x.view(len(x), 2, 2)).view(len(x), 4)  # the view itself goes on


class Mixing(nn.Module):
    """A layer by which an image's output depends on the others of its batch."""

    def forward(self, x):
        return x + x.flip(0)


@register(Mixing)
def mixing(module, x):
    """A bound that a user could write."""
    return LinearMap(module.forward)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (behind(Lambda(clamped)), "network layer '3': got 'Linear.*way of another view of it"),
        (behind(Lambda(rectified)), None),
        (
            behind(Lambda(lambda x: x + hidden(x))),
            "network layer '2': got 'add .*; a tensor with a number for each image comes from code",
        ),
        (
            behind(Lambda(hidden)),
            "network: got 'Sequential'; its logits come from code",
        ),
        (behind(Noisy()), "network layer '2': got 'add .*computes something else"),
        (behind(Wandering()), "network: got 'Sequential'; its operations differ from one pass to the next"),
        (
            behind(Lambda(lambda x: x if x.sum() > 0 else -x)),
            r"layer '2': got 'bool \(test_agreement.py, line \d+: .*values",
        ),
        (
            behind(Lambda(lambda x: x.sort().values)),
            r"layer '2': got 'sort \(test_agreement.py, line \d+: .*has no bound for it",
        ),
        (
            behind(Lambda(lambda x: x - x.mean(0, keepdim=True))),
            "layer '2': got 'mean .*it mixes the images of a batch",
        ),
        (behind(Mixing()), "network: got 'Sequential'; an image's logits depend on the others"),
        (behind(Lambda(lambda x: x + x.flip(0))), r"layer '2': got 'flip .*it takes a part of a batch, or puts its im"),
        (behind(Lambda(lambda x: x + 0.1 * x.flip(1).add_(1))), None),
        (behind(Lambda(Doubling.apply)), None),
        (behind(nn.LogSigmoid()), r"network layer '2': got 'LogSigmoid\(\)'; FeedForwardVerifier has no bound for it"),
    ],
)
@pytest.mark.parametrize("call", ["margins", "cross_entropy"])
def test_what_cannot_be_followed_is_refused_with_layer_operation_and_line(network, message, call):
    box, y = LinfBall(0.1).interval(torch.rand(2, 1, 4, 4)), torch.tensor([0, 1])
    if message is None:
        getattr(FeedForwardVerifier(), call)(network, box, y)
    else:
        for inference in (False, True):
            refused = pytest.raises(UnsupportedLayerError, match=f"{message}.*robust.bounds.LirpaVerifier")
            with torch.inference_mode(inference), refused:
                getattr(FeedForwardVerifier(), call)(network, box, y)


def test_a_training_step_costs_no_recording_and_a_later_change_is_seen():
    network, seen = plain(), []
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    box = LinfBall(0.0).interval(x)
    network[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    FeedForwardVerifier().cross_entropy(network, box, y)
    passes = len(seen)
    FeedForwardVerifier().cross_entropy(network, box, y)
    move_weights(network)
    loss = FeedForwardVerifier().cross_entropy(network, box, y)
    assert len(seen) == passes
    torch.testing.assert_close(loss, F.cross_entropy(network(x), y, reduction="none"))
    FeedForwardVerifier().margins(network, box, y)
    assert len(seen) > passes + 1
    handle = network[3].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert_exact_at_radius_zero(network, x)
    handle.remove()
    assert_exact_at_radius_zero(network, x)
    network[2].forward = torch.neg
    loss = FeedForwardVerifier().cross_entropy(network, box, y)
    torch.testing.assert_close(loss, F.cross_entropy(network(x), y, reduction="none"))


def test_the_comparison_leaves_modes_statistics_and_random_numbers():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    network[1].eval()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    FeedForwardVerifier().margins(network, LinfBall(0.1).interval(torch.full((2, 1, 4, 4), 0.5)), torch.tensor([0, 1]))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert network.training
    assert not network[1].training
    assert network[1].num_batches_tracked == 0


def test_networks_that_are_gone_are_forgotten():
    before = len(agreement._COMPARED)
    FeedForwardVerifier().margins(plain(), LinfBall(0.1).interval(torch.rand(1, 1, 4, 4)), torch.tensor([0]))
    assert len(agreement._COMPARED) == before


@pytest.mark.parametrize("verifier", [FeedForwardVerifier("tightest")])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([-1, 0])}, r"labels: got 'labels from -1 to 0'.*\[0, 3\)"),
        ({"y": torch.tensor([3, 0])}, r"labels from 0 to 3"),
        ({"y": torch.tensor([0.0, 1.0])}, r"labels: got 'torch.float32'; give integer"),
        ({"y": torch.tensor([[0], [1]])}, r"labels: got \(2, 1\); give one label per example"),
        ({"x": torch.rand(2, 1, 4, 4).half()}, r"box: got 'torch.float16'"),
        ({"x": torch.randint(255, (2, 1, 4, 4), dtype=torch.uint8)}, r"box: got 'torch.uint8'"),
        ({"x": torch.rand(0, 1, 4, 4), "y": torch.zeros(0).long()}, r"box: got .*at least one image"),
        ({"x": 4 * torch.rand(2, 1, 4, 4) - 2}, r"box: got 'midpoints from -.*\[0, 1\]; normalise inside the network"),
        ({"x": 255 * torch.rand(2, 1, 4, 4)}, r"box: got 'midpoints from .*normalise inside the network"),
        ({"x": torch.rand(2, 1, 4, 4).index_fill(3, torch.tensor(0), torch.nan)}, r"box: got 'radii from nan"),
        ({"budgets": torch.tensor(-0.1)}, r"box: got 'radii from -0.1"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(16, 1))}, r"network: got '1 logits'; .*at least 2 classes"),
        ({"network": plain().half()}, r"bounds need float32"),
        ({"network": nn.Sequential(nn.Linear(4, 3))}, r"network: got 'output of shape \(2, 1, 4, 3\)'"),
    ],
)
@pytest.mark.parametrize("call", ["margins", "cross_entropy"])
def test_wrong_inputs_are_one_clear_error(verifier, change, message, call):
    case = {"x": torch.rand(2, 1, 4, 4), "y": torch.tensor([0, 1]), "budgets": torch.tensor(0.1), "network": plain()}
    case |= change
    box = Box(case["x"] - case["budgets"], case["x"] + case["budgets"])
    if case["x"].dtype in (torch.float16, torch.uint8):
        box = Box(case["x"], case["x"])
    with pytest.raises(SettingError, match=message):
        getattr(verifier, call)(case["network"], box, case["y"])


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [2, 10, 37])
def test_little_memory_changes_no_margin(method, classes):
    torch.manual_seed(0)
    network = DMSmall((1, 12, 12), num_classes=classes)
    x, y = torch.rand(7, 1, 12, 12), torch.randint(classes, (7,))
    box = LinfBall(0.02).interval(x)
    whole = FeedForwardVerifier(method).margins(network, box, y)
    with torch.no_grad():
        for memory in (1, 1e5, 1e6):
            parts = FeedForwardVerifier(method, memory=memory)
            torch.testing.assert_close(parts.margins(network, box, y), whole.detach(), rtol=1e-5, atol=1e-5)
            low, high = parts.margin_range(network, box, y)
            assert ((low <= whole + 1e-5) & (whole <= high + 1e-5)).all()
    with pytest.raises(SettingError, match="memory: got 0; give a positive"):
        FeedForwardVerifier(memory=0)
