"""Temporary modes of a network: on exit, each module returns to its previous mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Mode = Literal["eval", "keep", "frozen"]
MODES: tuple[Mode, ...] = get_args(Mode)


@contextmanager
def keep_modes(network: nn.Module) -> Iterator[None]:
    """Restore the mode of each module on exit, whatever modes the network is put in.

    >>> network = nn.Sequential(nn.Dropout())
    >>> with keep_modes(network):
    ...     network.eval().training
    False
    >>> network.training, network[0].training
    (True, True)
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def in_mode(network: nn.Module, mode: Mode) -> Iterator[None]:
    """Put the network in a mode, and restore it on exit.

    Args:
        network: network whose modules change their mode.
        mode: ``"eval"`` puts it in evaluation mode; ``"keep"`` keeps each module's mode, so that in training every
            pass updates the running statistics of batch normalisation; ``"frozen"`` keeps each module's mode and does
            not update the running statistics: layers in training normalise by the batch.
    """
    frozen = _layers_that_move_statistics(network) if mode == "frozen" else []
    momenta = [layer.momentum for layer in frozen]
    with keep_modes(network):
        try:
            if mode == "eval":
                network.eval()
            for layer in frozen:
                layer.track_running_stats = False  # read by the layer at each pass: no update, no count
                layer.momentum = 0.0  # instance normalisation reads this alone
            yield
        finally:
            for layer, momentum in zip(frozen, momenta, strict=True):
                layer.track_running_stats = True
                layer.momentum = momentum


@contextmanager
def attack_mode(network: nn.Module, mode: Mode) -> Iterator[None]:
    """:func:`in_mode`, with no gradients but those asked for, also where the caller is in inference mode.

    >>> network = nn.Linear(1, 1)
    >>> with attack_mode(network, "eval"):
    ...     network.training, network(torch.ones(1, 1)).requires_grad
    (False, False)
    """
    with in_mode(network, mode), torch.inference_mode(False), torch.no_grad():
        yield


def _layers_that_move_statistics(network: nn.Module) -> list[_NormBase]:
    layers = [layer for layer in network.modules() if isinstance(layer, _NormBase)]
    return [layer for layer in layers if layer.training and layer.track_running_stats]
