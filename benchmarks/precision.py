"""Time of training steps in less precision, in another layout of memory, and as a CUDA graph, over a plain step.

    uv run benchmarks/run.py precision --device cuda

ResNet-18 on 3x32x32 images shows what precision costs, plain and with PGD of 10 steps, whose 11 passes are the least
that a step can take. DM-small shows the cost of launching kernels, which a graph of the whole step avoids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.turns import Case
from robust.attacks import PGD
from robust.networks import DMSmall, ResNet18
from robust.threat_models import LinfBall

STEPS = 10


@contextmanager
def tf32() -> Iterator[None]:
    """Products and convolutions of float32 numbers in TF32, on GPUs."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def float32() -> nullcontext[None]:
    torch.backends.cudnn.allow_tf32 = False
    return nullcontext()


def step(network: nn.Module, x: Tensor, y: Tensor, precision: str, attack: PGD | None = None) -> None:
    """Forward and backward of the loss on the images, or on attacked ones."""
    contexts = {
        "float32": float32,
        "TF32": tf32,
        "bf16": partial(torch.autocast, x.device.type, dtype=torch.bfloat16),
    }
    network.zero_grad()
    with contexts[precision]():
        found = x if attack is None else attack(network, LinfBall(8 / 255), x, y)
        loss = F.cross_entropy(network(found), y)
        loss.backward()


def resnet_cases(batch: int, device: str) -> dict[str, Case]:
    """Steps of ResNet-18; the first is the unit."""
    network = ResNet18(num_classes=10).to(device)
    fast = ResNet18(num_classes=10).to(device, memory_format=torch.channels_last)
    x, y = torch.rand(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    last = x.to(memory_format=torch.channels_last)
    cases: dict[str, Case] = {}
    for title, attack in (("plain", None), ("PGD of 10 steps", PGD(steps=STEPS))):
        for precision in ("float32", "TF32", "bf16"):
            cases[f"{title}, {precision}"] = partial(step, network, x, y, precision, attack)
        cases[f"{title}, bf16, channels last"] = partial(step, fast, last, y, "bf16", attack)
    return cases


def graph_cases(batch: int) -> dict[str, Case]:
    """A plain step of DM-small on a GPU, launched kernel by kernel and as a graph."""
    network = DMSmall((1, 28, 28)).cuda()
    x, y = torch.rand(batch, 1, 28, 28, device="cuda"), torch.randint(10, (batch,), device="cuda")
    cases: dict[str, Case] = {"plain, float32": partial(step, network, x, y, "float32")}
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):  # a capture needs all memory to be there
        for _ in range(3):
            step(network, x, y, "float32")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(network, x, y, "float32")
    return cases | {"plain, float32, CUDA graph": graph.replay}
