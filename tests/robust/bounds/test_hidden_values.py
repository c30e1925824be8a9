"""Networks whose operations depend on an image's values, or that change after a bound, get no false certificate."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from robust.bounds import FeedForwardVerifier, LirpaVerifier, certify, choose_verifier
from robust.errors import UnsupportedLayerError
from robust.threat_models import LinfBall


def _step(h: torch.Tensor) -> torch.Tensor:
    return (h > 0).float()


with warnings.catch_warnings():  # torch.jit.script is deprecated; networks still use it
    warnings.simplefilter("ignore")
    scripted = torch.jit.script(_step)


class Gated(nn.Module):
    """Predicts class 0 where the mean of an image is at most 0.8, and class 1 elsewhere."""

    def __init__(self, gate):
        super().__init__()
        self.gate, self.head = gate, nn.Linear(16, 2)
        with torch.no_grad():
            self.head.weight.mul_(0.01)
            self.head.bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, x):
        gate = self.gate(x.mean((1, 2, 3)) - 0.8)
        return self.head(x.flatten(1)) + torch.stack([-10 * gate, 10 * gate], 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "gate",
    [
        scripted,
        lambda h: h.new_tensor(scripted(h)),
        lambda h: torch.full_like(h, scripted(h).amax()),
        lambda h: torch.zeros(len(h)).add_(scripted(h)),
    ],
    ids=["TorchScript", "new_tensor", "full_like", "filled in place"],
)
def test_a_gate_in_code_that_cannot_be_followed_is_refused(gate):
    """Regression: it was a constant, since it is the same on all images that the recording compares."""
    network, x = Gated(gate).eval(), torch.full((1, 1, 4, 4), 0.78)
    assert network(x).argmax() != network(x + 0.05).argmax()
    with pytest.raises(UnsupportedLayerError):
        certify(FeedForwardVerifier("ibp"), network, LinfBall(0.05), x, torch.tensor([0]))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        if x.amin() > 0.99:
            x = -x
        return self.head(x.flatten(1))


def test_a_branch_on_an_images_values_is_refused_by_auto_lirpa_too():
    """Regression: ``auto`` took auto_LiRPA, which traced one branch and certified it."""
    with pytest.raises(UnsupportedLayerError, match="the network's operations must not depend on an image's values"):
        choose_verifier(Branching(), (1, 4, 4))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.factor, self.weight = nn.Linear(16, 2), 1.0, nn.Parameter(torch.tensor(1.0))
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([1.0, -1.0])[:, None].expand(2, 16))
            self.head.bias.zero_()

    def forward(self, x):
        return self.factor * self.weight.item() * self.head(x.flatten(1))


@pytest.mark.filterwarnings("ignore")  # of torch.jit, that a number is a constant
@pytest.mark.parametrize("change", [lambda n: setattr(n, "factor", -1.0), lambda n: n.weight.data.fill_(-1.0)])
def test_auto_lirpa_sees_a_change_of_an_attribute_and_of_a_weight_that_is_read(change):
    """Regression: the traced graph kept both as constants."""
    network, verifier = Scaled().eval(), LirpaVerifier(method="ibp")
    x, y = torch.full((1, 1, 4, 4), 0.9), torch.tensor([0])
    assert certify(verifier, network, LinfBall(0.05), x, y).certified.all()
    change(network)
    assert network(x).argmax() == 1
    assert not certify(verifier, network, LinfBall(0.05), x, y, rounding_safe=False).certified.any()


def test_lanczos_has_no_bound_since_its_weights_have_both_signs():
    class Resized(nn.Module):
        def forward(self, x):
            return F.interpolate(x, size=(4, 4), mode="lanczos", antialias=True).flatten(1)

    with pytest.raises(UnsupportedLayerError, match="mode lanczos has weights of both signs; set mode to bilinear"):
        certify(FeedForwardVerifier("ibp"), Resized(), LinfBall(0.1), torch.rand(1, 1, 8, 8), torch.tensor([0]))


@pytest.mark.parametrize("method", ["crown", "tightest"])
def test_a_pruned_network_is_certified_after_a_pass_with_gradients(method):
    """Regression: deepcopy refused the weights that the pass had computed."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    prune.l1_unstructured(network[1], "weight", 0.5)
    x = torch.rand(4, 1, 4, 4)
    y = network(x).argmax(1)
    assert certify(FeedForwardVerifier(method), network, LinfBall(1e-6), x, y).certified.all()
