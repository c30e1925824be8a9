"""A small network that was trained against attacks on Digits, and the test images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datamodules import Digits
from robust.attacks import FGSM
from robust.threat_models import LinfBall


def digits(split):
    dataset = Digits().load(split)
    return dataset.images.float() / 255, dataset.labels


@pytest.fixture(scope="session")
def trained():
    """Network in eval mode, images (150, 1, 28, 28) and labels of the test split."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16 * 49, 50), nn.ReLU(), nn.Linear(50, 10)),
    )
    x, y = digits("train")
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    attack = FGSM(1.25, random_start=True)
    for _ in range(6):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(attack(network, LinfBall(0.1), x[batch], y[batch])), y[batch]).backward()
            optimizer.step()
    network.zero_grad()  # to None
    x, y = digits("test")
    return network.eval(), x[:150], y[:150]


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
