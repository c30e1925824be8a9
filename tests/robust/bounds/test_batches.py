"""Networks that treat the images of a batch together, or change their weights in a pass, have no bounds."""

import pytest
import torch
from torch import nn

from robust.bounds import FeedForwardVerifier, LirpaVerifier
from robust.bounds.automatic import choose_verifier
from robust.errors import UnsupportedLayerError
from robust.threat_models import LinfBall

METHODS = ("ibp", "crown-ibp", "tightest")


def layers():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


class Ensemble(nn.Module):
    """The mean of networks whose outputs are stacked in front of the batch."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(layers() for _ in range(members))

    def forward(self, x):
        return torch.stack([member(x) for member in self.members]).sigmoid().mean(0)


class Around(nn.Module):
    """A network whose images or outputs a function moves."""

    def __init__(self, function):
        super().__init__()
        self.network, self.function = layers(), function

    def forward(self, x):
        return self.function(self.network, x)


class MaxNorm(nn.Linear):
    """A linear layer that limits the norm of its weights in each pass."""

    def __init__(self, how):
        super().__init__(16, 8)
        self.how = how

    def forward(self, x):
        with torch.no_grad():
            CHANGES[self.how](self.weight)
        return super().forward(x)


def replace(weight):
    weight.data = torch.renorm(weight.data, 2, 0, 1.0)


def scale(weight):
    weight *= 0.9


CHANGES = {
    "data": replace,
    "in place": lambda weight: weight.data.renorm_(2, 0, 1.0),
    "copy": lambda weight: weight.copy_(torch.renorm(weight, 2, 0, 1.0)),
    "out": lambda weight: torch.clamp(weight, -1, 1, out=weight),
    "item": lambda weight: weight.__setitem__(0, 0.5),
    "scale": scale,
}


def bounds(verifier, network):
    x = torch.rand(5, 1, 4, 4)
    return verifier.margins(network, LinfBall(0.1).interval(x), torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize("members", [2, 6, 7])
@pytest.mark.parametrize("method", METHODS)
def test_an_axis_is_not_taken_for_that_of_the_images_by_its_length(members, method):
    """Regression: 7 members were taken for the 7 images of the recording, and certificates were false."""
    with pytest.raises(UnsupportedLayerError, match=r"stack \(test_batches.*; it mixes the images of a batch; set the"):
        bounds(FeedForwardVerifier(method), Ensemble(members))


@pytest.mark.parametrize(
    "function",
    [
        lambda network, x: torch.cat([network(part) for part in x.split(64)]),
        lambda network, x: torch.cat([network(part) for part in x.split(split_size=64)]),
        lambda network, x: torch.cat([network(part) for part in x.chunk(1)]),
        lambda network, x: torch.cat([network(part) for part in x.chunk(1, dim=-4)]),
        lambda network, x: network(x[:64]),
        lambda network, x: network(x[:64, ..., :]),
        lambda network, x: network(x[..., ::1, :, :, :][..., :64, :, :, :]),
        lambda network, x: network(x.narrow(0, 0, len(x))),
        lambda network, x: network(x.roll(1, 0)).roll(-1, 0),
        lambda network, x: network(x.roll(1)).roll(-1),
        lambda network, x: network(x.flip(0)).flip((0,)),
    ],
)
def test_parts_and_orders_of_a_batch_are_refused(function):
    """Regression: a network that splits batches above 64 images ended in a traceback behind the first epoch."""
    with pytest.raises(UnsupportedLayerError, match="it takes a part of a batch, or puts its images in another order"):
        bounds(FeedForwardVerifier("ibp"), Around(function))


@pytest.mark.parametrize(
    "function",
    [
        lambda network, x: network(x[:, :, 1:3].repeat(1, 1, 2, 1)),
        lambda network, x: network(x[..., ::2].repeat(1, 1, 1, 2)),
        lambda network, x: network(x[:][0:, ...][:, None].squeeze(1)),
        lambda network, x: network(torch.cat(x.chunk(2, 2), 2).flip(2, 3).roll(1, dims=-1)),
        lambda network, x: network(torch.cat(x.split(2, -1), dim=3).narrow(2, 0, 4).flip([1]).roll((1, 2), (2, 3))),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_other_axes_may_be_divided(function, method):
    torch.manual_seed(0)
    network = Around(function)
    x = torch.rand(5, 1, 4, 4)
    lower = FeedForwardVerifier(method).margins(network, LinfBall(0.0).interval(x), torch.zeros(5, dtype=torch.long))
    logits = network(x)
    assert torch.allclose(lower[:, 0], logits[:, 0] - logits[:, 1], atol=1e-5)


@pytest.mark.parametrize("how", CHANGES)
def test_a_pass_that_changes_weights_has_no_bound(how):
    """Regression: a bound before a pass was of weights that the network does not use, below its own loss."""
    network = nn.Sequential(nn.Flatten(), MaxNorm(how), nn.ReLU(), nn.Linear(8, 2))
    refusal = r"^network layer '1': got '.*it changes a weight in the forward pass, .* by torch.nn.utils.parametrize$"
    for bound in (bounds, lambda verifier, network: choose_verifier(network, (1, 4, 4))):
        with pytest.raises(UnsupportedLayerError, match=refusal):
            bound(FeedForwardVerifier("ibp"), network)


class Frozen(nn.Linear):
    """A linear layer whose pass sets whether its weights learn, and takes a weight as a number."""

    def forward(self, x):
        self.weight.requires_grad_(False)
        self.weight.grad = None
        return super().forward(x) + int(self.bias[0])


def test_a_pass_that_leaves_the_values_of_weights_has_bounds():
    network = nn.Sequential(nn.Flatten(), Frozen(16, 2))
    with torch.no_grad():
        network[1].bias.fill_(3.5)
    assert bounds(FeedForwardVerifier("ibp"), network).shape == (5, 1)


def test_auto_lirpa_has_no_bound_for_it_either():
    network = nn.Sequential(nn.Flatten(), MaxNorm("data"), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(UnsupportedLayerError, match="it changes a weight in the forward pass"):
        bounds(LirpaVerifier(), network)
