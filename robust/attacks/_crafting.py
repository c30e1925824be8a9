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


def judge(network: nn.Module, loss: Loss, x: Tensor, y: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Loss of each example (B,) and whether it is misclassified (B,): mean and majority over so many passes.

    Separate passes, for networks may share one draw of their noise among the examples of a batch.

    Raises:
        SettingError: if the loss is not one number per example.
    """
    logits = [network(x) for _ in range(draws)]
    return _mean([_checked(loss(each, y), y) for each in logits]), _majority([each.argmax(1) != y for each in logits])


def input_gradient(network: nn.Module, loss: Loss, x: Tensor, y: Tensor, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient (B, C, H, W) of each example's loss to its image, mean over passes, and what :func:`judge` gives."""
    x = x.detach().requires_grad_()
    gradients, losses, wrong = [], [], []
    for _ in range(draws):  # one graph at a time
        with torch.enable_grad():
            logits = network(x)
            each = _checked(loss(logits, y), y)
            # the sum: an example's gradient does not depend on the others
            gradients.append(torch.autograd.grad(each.sum(), x)[0])
        losses.append(each.detach())
        wrong.append(logits.argmax(1) != y)
    return _mean(gradients), _mean(losses), _majority(wrong)


def _mean(draws: list[Tensor]) -> Tensor:
    return torch.stack(draws).mean(0)


def _majority(draws: list[Tensor]) -> Tensor:
    return torch.stack(draws).float().mean(0) > 0.5


def _checked(each: Tensor, y: Tensor) -> Tensor:
    require(each.shape == (len(y),), "loss", tuple(each.shape), f"return one number per example, shape ({len(y)},)")
    return each
