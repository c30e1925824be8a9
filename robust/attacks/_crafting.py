"""What every attack needs of a network: its modes kept, gradients to the input alone, verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from robust.errors import require
from robust.losses import Loss, cross_entropy, dlr, margin

Mode = Literal["eval", "keep", "frozen"]
MODES = ("eval", "keep", "frozen")
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


@contextmanager
def crafting(network: nn.Module, mode: Mode) -> Iterator[None]:
    """No gradients but those asked for, also where the caller is in inference mode; the network as it was afterwards.

    Args:
        network: what is attacked.
        mode: ``"eval"`` puts it in evaluation mode; ``"keep"`` leaves each module's mode, so that in training every
            pass of the attack moves the running statistics of batch normalisation; ``"frozen"`` leaves each module's
            mode but not a trace in those statistics: layers in training normalise by the batch.
    """
    modes = [(module, module.training) for module in network.modules()]
    frozen = [
        module
        for module, training in modes
        if mode == "frozen" and training and isinstance(module, _NormBase) and module.track_running_stats
    ]
    try:
        if mode == "eval":
            network.eval()
        for layer in frozen:
            layer.track_running_stats = False  # read by the layer at each pass: no update, no count
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for layer in frozen:
            layer.track_running_stats = True
        for module, training in modes:
            module.training = training


def named_loss(loss: Loss | str) -> Loss:
    """The loss itself, or the one of that name.

    Raises:
        SettingError: if there is none of that name.
    """
    if isinstance(loss, str):
        require(loss in LOSSES, "loss", loss, f"give one of {', '.join(LOSSES)} or a function (logits, y) -> (B,)")
        return LOSSES[loss]
    return loss


def judge(network: nn.Module, loss: Loss, x: Tensor, y: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    """Loss of each example (B,) and whether it is misclassified (B,).

    Mean and majority over ``copies`` of the batch (B, C, H, W) in one pass: a network that draws its noise for each
    example draws them independently.

    Raises:
        SettingError: if the loss is not one number per example.
    """
    if copies == 1:
        logits = network(x)
        return _checked(loss(logits, y), y), logits.argmax(1) != y
    parts = network(x.repeat(copies, 1, 1, 1)).chunk(copies)
    each = torch.stack([_checked(loss(part, y), y) for part in parts]).mean(0)
    wrong = torch.stack([part.argmax(1) != y for part in parts]).float().mean(0) > 0.5
    return each, wrong


def input_gradient(network: nn.Module, loss: Loss, x: Tensor, y: Tensor, copies: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient (B, C, H, W) of each example's loss to its image, and what :func:`judge` gives."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        each, wrong = judge(network, loss, x, y, copies)
        (gradient,) = torch.autograd.grad(each.sum(), x)  # the sum: an example's gradient does not depend on the others
    return gradient, each.detach(), wrong


def _checked(each: Tensor, y: Tensor) -> Tensor:
    require(each.shape == (len(y),), "loss", tuple(each.shape), f"return one number per example, shape ({len(y)},)")
    return each
