"""Trains the network of the attacks' tests and writes network.npz: ``python -m tests.robust.attacks.make_network``.

Its weights are stored, in float16, so that the tests attack the same network on every machine.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from datamodules import Digits
from robust.attacks import FGSM
from robust.threat_models import LinfBall

FILE = Path(__file__).with_name("network.npz")


def digits(split):
    """Images (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    dataset = Digits().load(split)
    return dataset.images.float() / 255, dataset.labels


def architecture():
    """A small classifier of 28x28 images in 10 classes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16 * 49, 24), nn.ReLU(), nn.Linear(24, 10)),
    )


def stored():
    """The trained network in eval mode."""
    network = architecture()
    with np.load(FILE) as arrays:
        network.load_state_dict({name: torch.from_numpy(arrays[name]).float() for name in arrays.files})
    return network.eval()


def main():
    """Train for some epochs against FGSM of linf 0.1."""
    torch.manual_seed(0)
    network = architecture()
    x, y = digits("train")
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    attack = FGSM(1.25, random_start=True)
    for _ in range(20):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(attack(network, LinfBall(0.1), x[batch], y[batch])), y[batch]).backward()
            optimizer.step()
    np.savez_compressed(FILE, **{name: w.numpy().astype(np.float16) for name, w in network.state_dict().items()})


if __name__ == "__main__":
    main()
