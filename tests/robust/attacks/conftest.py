"""A small network that was trained against attacks on Digits, and the test images."""

import pytest
import torch

from tests.robust.attacks.make_network import digits, stored


@pytest.fixture(scope="session")
def trained():
    """Network in eval mode, images (150, 1, 28, 28) and labels of the test split."""
    x, y = digits("test")
    return stored(), x[:150], y[:150]


@pytest.fixture(scope="session")
def accuracy(trained):
    """Accuracy in percent that an attack of a fixed seed leaves the trained network."""

    def measure(attack, threat_model):
        network, x, y = trained
        torch.manual_seed(1)
        x_adv = attack(network, threat_model, x, y)
        assert threat_model.contains(x_adv, x).all()
        return 100 * (network(x_adv).argmax(1) == y).float().mean().item()

    return measure
