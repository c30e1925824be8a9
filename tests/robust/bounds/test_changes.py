"""Bounds are of the network as it is now: a change of any attribute is seen, and nothing else costs a recording."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust.bounds import FeedForwardVerifier, agreement
from robust.threat_models import LinfBall
from tests.robust.bounds.test_agreement import assert_exact_at_radius_zero


class Slot:
    __slots__ = ("gain",)

    def __init__(self):
        self.gain = 1.0

    def __call__(self, x):
        return self.gain * x


class Callable:
    def __init__(self):
        self.gain = 1.0

    def __call__(self, x):
        return self.gain * x


class Gain(nn.Module):
    """Multiplies by what is in an attribute, and in objects of others; stores what it has computed."""

    def __init__(self, gain):
        super().__init__()
        self.gain, self.config = gain, SimpleNamespace(parts=[1.0, {"gain": 1.0}])
        self._own, self._config, self.slot, self.call = np.ones(1), SimpleNamespace(gain=1.0), Slot(), Callable()

    def forward(self, x):
        gain = self.gain[0] if isinstance(self.gain, list) else self.gain
        self.last = x * float(gain) * self.config.parts[1]["gain"] * float(self._own[0]) * self._config.gain
        return self.call(self.slot(self.last))


def move(module, name):
    if name == "gain":
        module.gain = -1 * module.gain if not isinstance(module.gain, list) else [-1.0]
    elif name == "tensor in place":
        module.gain.neg_()
    elif name == "data":
        module.gain.data.neg_()
    elif name in ("_config", "slot", "call"):
        getattr(module, name).gain = -1.0
    elif name == "config":
        module.config.parts[1]["gain"] = -1.0
    else:
        module._own[0] = -1.0


@pytest.mark.parametrize(
    ("gain", "name"),
    [
        (1.0, "gain"),
        (np.float64(1), "gain"),
        (np.ones(()), "gain"),
        (torch.ones(()), "gain"),
        (torch.ones(()), "tensor in place"),
        ([1.0], "gain"),
        (1.0, "config"),
        (1.0, "array in place"),
        (torch.ones(()), "data"),
        (1.0, "_config"),
        (1.0, "slot"),
        (1.0, "call"),
    ],
)
def test_a_change_of_any_attribute_is_seen(gain, name):
    """Regression: numpy's numbers, tensors, lists and objects kept the former value's bound, which was unsound."""
    network = nn.Sequential(nn.Flatten(), Gain(gain), nn.Linear(16, 3))
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    box = LinfBall(0.0).interval(x)
    for _ in range(2):
        loss = FeedForwardVerifier().cross_entropy(network, box, y)
        torch.testing.assert_close(loss, F.cross_entropy(network(x), y, reduction="none"))
        move(network[1], name)
    assert_exact_at_radius_zero(network, x)


def test_attributes_that_lead_to_each_other_are_entered_once():
    """Regression: nine objects that know each other took seconds in each step."""
    network = nn.Sequential(nn.Flatten(), Gain(1.0), nn.Linear(16, 3))
    objects = [SimpleNamespace() for _ in range(30)]
    for each in objects:
        each.all, each.network = objects, network
    objects.append(objects)
    network[1].config.objects = objects
    assert_exact_at_radius_zero(network, torch.rand(2, 1, 4, 4))


def test_what_a_pass_stores_costs_no_recording(monkeypatch):
    """Regression: a network that keeps its features was recorded in each step."""
    network = nn.Sequential(nn.Flatten(), Gain(1.0), nn.Linear(16, 3))
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    recorded = []
    monkeypatch.setattr(
        agreement, "_recorded", lambda *given, real=agreement._recorded: recorded.append(1) or real(*given)
    )
    for _ in range(3):
        FeedForwardVerifier().cross_entropy(network, LinfBall(0.1).interval(x), y)
        network(x)
    assert len(recorded) == 1
