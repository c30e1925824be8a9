"""Why auto_LiRPA fails on a network: layers that are known not to go through it, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust.errors import UnsupportedLayerError


class Cause(NamedTuple):
    """A part of a network, what it is, and what to do about it."""

    name: str
    kind: str
    remedy: str

    def error(self) -> UnsupportedLayerError:
        """The cause as an error."""
        return UnsupportedLayerError(self.name, self.kind, self.remedy)


def find_cause(network: nn.Module, images: Tensor) -> Cause | None:
    """The first known cause for which bounds of ``network``, in evaluation mode, would fail; None if there is none."""
    for name, module in network.named_modules():
        remedy = _remedy(module)
        if remedy is not None:
            return Cause(f"network layer '{name}'", str(module).split("\n")[0], remedy)
    logits = network(images)
    if not torch.allclose(network(images), logits, equal_nan=True):
        remedy = (
            "two passes of the same image differ in evaluation mode; turn its noise off (dropout that is always on?)"
        )
        return Cause("network", type(network).__name__, remedy)
    return None


def _remedy(module: nn.Module) -> str | None:
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return "auto_LiRPA bounds zero padding only; set padding_mode to zeros"
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
        return "auto_LiRPA cannot trace a padding that is a word; give it as a number"
    if isinstance(module, nn.MaxPool2d) and module.ceil_mode:
        return "auto_LiRPA cannot trace ceil_mode; set it to false and pad instead"
    if isinstance(module, _BatchNorm) and not module.track_running_stats:
        return "an image's logits depend on the others in its batch; set track_running_stats to true"
    return None


def failing_layer(network: nn.Module, images: Tensor, fails: Callable[[nn.Module, Tensor], bool]) -> str | None:
    """Name of the innermost layer that fails alone, on its inputs in a forward pass; None if only the whole fails.

    Args:
        network: network in evaluation mode.
        images: input of the network, (B, C, H, W).
        fails: function that says whether a layer fails on its input.
    """
    inputs: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, arguments: tuple[object, ...]) -> None:
        if len(arguments) == 1 and isinstance(arguments[0], Tensor):
            inputs.setdefault(module, arguments[0])

    hooks = [module.register_forward_pre_hook(note) for module in network.modules()]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    inner_first = reversed([(name, module) for name, module in network.named_modules() if name and module in inputs])
    failing = ((name, module) for name, module in inner_first if fails(module, inputs[module]))
    return next((f"network layer '{name}' ({type(module).__name__})" for name, module in failing), None)


def odd_pooling(network: nn.Module) -> Cause | None:
    """The first max-pooling of windows that overlap, which auto_LiRPA bounds by intervals alone."""
    for name, module in network.named_modules():
        pooling = isinstance(module, nn.MaxPool2d)
        if pooling and (module.stride != module.kernel_size or module.padding not in (0, (0, 0))):
            remedy = "auto_LiRPA has linear bounds of a stride equal to the kernel without padding only; use method ibp"
            return Cause(f"network layer '{name}'", str(module), remedy)
    return None
