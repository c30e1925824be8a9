"""Modes of a network."""

import copy

import pytest
import torch
from torch import nn

from robust.modes import in_mode


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_frozen_layers_normalise_as_in_training_and_keep_their_statistics(kind, momentum):
    layer = kind(3, momentum=momentum, track_running_stats=True).train()
    x = torch.randn(4, 3, 5, 5)
    trained, before = copy.deepcopy(layer), copy.deepcopy(layer.state_dict())
    with in_mode(layer, "frozen"):
        torch.testing.assert_close(layer(x), trained(x), rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    layer(x)  # afterwards it is in training again
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in trained.state_dict().items())
