"""Time of training steps in less precision, in another layout of memory, and as a CUDA graph, over a plain step.

    uv run benchmarks/run.py precision --device cuda

ResNet-18 on 3x32x32 images shows what precision costs, plain and with PGD of 10 steps, whose 11 passes are the least
that a step can take. DM-small shows the cost of launching kernels, which a graph of the whole step avoids.
"""

from __future__ import annotations

from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.turns import Case
from robust.attacks import PGD
from robust.bounds.verifier import TrainingPrecision, in_training_precision
from robust.networks import DMSmall, ResNet18
from robust.threat_models import LinfBall

STEPS = 10


def step(
    network: nn.Module, x: Tensor, y: Tensor, precision: TrainingPrecision = "float32", attack: PGD | None = None
) -> None:
    """Forward and backward of the loss on the images, or on attacked ones."""
    network.zero_grad()
    with in_training_precision(precision, x.device):
        x_adv = x if attack is None else attack(network, LinfBall(8 / 255), x, y)
        F.cross_entropy(network(x_adv), y).backward()


def resnet_cases(batch: int, device: str) -> dict[str, Case]:
    """Steps of ResNet-18; the first is the unit."""
    network = ResNet18(num_classes=10).to(device)
    channels_last = ResNet18(num_classes=10).to(device, memory_format=torch.channels_last)
    x, y = torch.rand(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    x_last = x.to(memory_format=torch.channels_last)
    titles = dict(zip(get_args(TrainingPrecision), ("float32", "TF32", "bf16"), strict=True))
    cases: dict[str, Case] = {}
    for title, attack in (("plain", None), ("PGD of 10 steps", PGD(steps=STEPS))):
        for precision, name in titles.items():
            cases[f"{title}, {name}"] = partial(step, network, x, y, precision, attack)
        cases[f"{title}, bf16, channels last"] = partial(step, channels_last, x_last, y, "bfloat16", attack)
    return cases


def graph_cases(batch: int) -> dict[str, Case]:
    """A plain step of DM-small on a GPU, launched kernel by kernel and as a graph."""
    network = DMSmall((1, 28, 28)).cuda()
    x, y = torch.rand(batch, 1, 28, 28, device="cuda"), torch.randint(10, (batch,), device="cuda")
    cases: dict[str, Case] = {"plain, float32": partial(step, network, x, y)}
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):  # a capture needs all memory to be there
        for _ in range(3):
            step(network, x, y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(network, x, y)
    return cases | {"plain, float32, CUDA graph": graph.replay}
