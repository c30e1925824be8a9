"""Training steps of ResNet-20 on 3x32x32 images, plain and with each kind of noise, for the benchmark ``noise``.

A step is forward, backward and SGD. On CPU, time is the process's own over all its threads, which other load on the
machine hardly changes.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.networks import BayesianWeights, Noisy, NoisyWeights, ResNetV1

NOISY_LAYERS, SHAPE = ["bn1", "*.addition"], (3, 32, 32)


def networks(device: str) -> dict[str, nn.Module]:
    """The networks, by their names in the table."""
    kinds = {
        "plain": ResNetV1(),
        "Learn2Perturb, noise for each example": Noisy(ResNetV1(), NOISY_LAYERS, SHAPE),
        "Learn2Perturb, shared noise": Noisy(ResNetV1(), NOISY_LAYERS, SHAPE, shared_noise=True),
        "PNI, layer": NoisyWeights(ResNetV1()),
        "Adv-BNN": BayesianWeights(ResNetV1()),
    }
    return {name: network.to(device) for name, network in kinds.items()}


def seconds(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    clock = time.perf_counter if x.is_cuda else time.process_time
    start = clock()
    optimizer.zero_grad()
    F.cross_entropy(network(x), y).backward()
    optimizer.step()
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - start
