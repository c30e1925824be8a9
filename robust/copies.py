"""Copies of networks in any state."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network; tensors that a pass has computed, such as pruned weights, become constants.

    ``copy.deepcopy`` refuses tensors with a gradient function.
    """
    return copy.deepcopy(network, {id(value): value.detach().clone() for value in _computed(network)})


def _computed(network: nn.Module) -> Iterator[Tensor]:
    for module in network.modules():
        for value in (*vars(module).values(), *module.buffers(recurse=False)):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                yield value
