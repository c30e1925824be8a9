"""The verifier that suits a network: the own one where it can bound it, else auto_LiRPA's."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

from robust.bounds._lirpa_causes import odd_pooling
from robust.bounds.agreement import checked_graph
from robust.bounds.feed_forward import FeedForwardVerifier
from robust.bounds.lirpa import LirpaVerifier
from robust.bounds.recording import REMEDY, UNKNOWN
from robust.bounds.verifier import Verifier, bound_precision
from robust.errors import UnsupportedLayerError

Auto = Literal["auto"]


class Choice(NamedTuple):
    """A verifier, and why it was chosen."""

    verifier: Verifier
    reason: str

    def __str__(self) -> str:
        return f"{type(self.verifier).__name__}, since {self.reason}"


def choose_verifier(network: nn.Module, image_shape: tuple[int, int, int]) -> Choice:
    """The own verifier where it bounds the network, else auto_LiRPA's; whether that can shows when it is first used.

    >>> str(choose_verifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2)))
    'FeedForwardVerifier, since it bounds all operations of the network'
    >>> str(choose_verifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Softmax(1)), (1, 2, 2)))
    "LirpaVerifier, since FeedForwardVerifier has no bound for network layer '2': got 'Softmax(dim=1)'"

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K), with weights of float32 or float64.
        image_shape: (C, H, W).

    Raises:
        SettingError: if the weights are in half precision, or the network gives no logits.
    """
    device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    blank = torch.zeros(1, *image_shape, dtype=bound_precision(network), device=device)
    try:
        checked_graph(network, blank, weights_too=False)
    except UnsupportedLayerError as error:
        layer = str(error).removesuffix(f"; {REMEDY}").removesuffix(f"; {UNKNOWN}")
        reason = f"FeedForwardVerifier has no bound for {layer}"
        if (pooling := odd_pooling(network)) is not None:
            remark = f"{reason}; by method ibp, since auto_LiRPA has no linear bounds for {pooling.name}"
            return Choice(LirpaVerifier(method="ibp"), remark)
        return Choice(LirpaVerifier(), reason)
    return Choice(FeedForwardVerifier(), "it bounds all operations of the network")
