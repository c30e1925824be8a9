"""The verifier that suits a network: the own one where it can bound it, else auto_LiRPA's."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from robust.bounds._lirpa_causes import odd_pooling
from robust.bounds.feed_forward import FeedForwardVerifier
from robust.bounds.lirpa import LirpaVerifier
from robust.bounds.sequential import feed_forward
from robust.bounds.verifier import Verifier, bound_precision
from robust.errors import UnsupportedLayerError

Auto = Literal["auto"]


class Choice(NamedTuple):
    """A verifier, and why it was chosen."""

    verifier: Verifier
    reason: str

    def __str__(self) -> str:
        return f"{type(self.verifier).__name__}, since {self.reason}"


def choose_verifier(network: nn.Module) -> Choice:
    """The verifier that suits the network's layers; whether it can bound them all shows when it is first used.

    >>> str(choose_verifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))))
    'FeedForwardVerifier, since the network is a sequence of layers that it bounds'
    >>> str(choose_verifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.GELU())))
    "LirpaVerifier, since FeedForwardVerifier has no bound for network layer '2' (GELU)"

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K), with weights of float32 or float64.

    Raises:
        SettingError: if the weights are in half precision.
    """
    try:
        feed_forward(network, bound_precision(network))
    except UnsupportedLayerError as error:
        name = str(error).partition("'")[2].partition("'")[0]  # of "network layer 'name': got ..."
        kind = type(network.get_submodule(name)).__name__
        layer = f"network layer '{name}' ({kind})" if name else f"{kind}, which is no nn.Sequential"
        reason = f"FeedForwardVerifier has no bound for {layer}"
        if (pooling := odd_pooling(network)) is not None:
            remark = f"{reason}; by method ibp, since auto_LiRPA has no linear bounds for {pooling.name}"
            return Choice(LirpaVerifier(method="ibp"), remark)
        return Choice(LirpaVerifier(), reason)
    return Choice(FeedForwardVerifier(), "the network is a sequence of layers that it bounds")
