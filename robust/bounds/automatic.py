"""The verifier that suits a network: the own one where it can bound it, else auto_LiRPA's."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from robust.bounds._lirpa_causes import odd_pooling
from robust.bounds.agreement import checked_graph
from robust.bounds.calls import REMEDY, UNKNOWN
from robust.bounds.feed_forward import FeedForwardVerifier
from robust.bounds.lirpa import LirpaVerifier
from robust.bounds.recording import WeightChangeError
from robust.bounds.verifier import Verifier, bound_precision
from robust.errors import UnsupportedLayerError
from robust.threat_models import Box

Auto = Literal["auto"]


class Choice(NamedTuple):
    """A verifier, and why it was chosen."""

    verifier: Verifier
    reason: str

    def __str__(self) -> str:
        return f"{type(self.verifier).__name__}, since {self.reason}"


def choose_verifier(network: nn.Module, image_shape: tuple[int, int, int]) -> Choice:
    """The own verifier where it bounds the network, else auto_LiRPA's, after a trial on a blank image.

    >>> str(choose_verifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2)))
    'FeedForwardVerifier, since it bounds all operations of the network'

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K), with weights of float32 or float64.
        image_shape: (C, H, W).

    Raises:
        SettingError: if the weights are in half precision, or the network gives no logits.
        UnsupportedLayerError: if neither bounds the network, and what each has no bound for; or if the network changes
            its weights in its forward pass.
    """
    reason = without_bound(network, image_shape)
    if reason is None:
        return Choice(FeedForwardVerifier(), "it bounds all operations of the network")
    verifier = LirpaVerifier()
    if (pooling := odd_pooling(network)) is not None:
        verifier = LirpaVerifier(method="ibp")
        reason = f"{reason}; by method ibp, since auto_LiRPA has no linear bounds for {pooling.name}"
    blank = _blank(network, image_shape)
    try:
        with torch.no_grad():
            verifier.margins(network, Box(blank, blank), torch.zeros(1, dtype=torch.long, device=blank.device))
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(
            "network", type(network).__name__, f"{reason}; nor has auto_LiRPA: {error}"
        ) from None
    return Choice(verifier, reason)


def without_bound(network: nn.Module, image_shape: tuple[int, int, int]) -> str | None:
    """The operation that the own verifier has no bound for, as a sentence; None if it bounds the network.

    Raises:
        SettingError: in the cases of :func:`choose_verifier`.
    """
    try:
        checked_graph(network, _blank(network, image_shape), weights_too=False)
    except WeightChangeError:
        raise
    except UnsupportedLayerError as error:
        layer = str(error).removesuffix(f"; {REMEDY}").removesuffix(f"; {UNKNOWN}")
        return f"FeedForwardVerifier has no bound for {layer}"
    return None


def _blank(network: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    return torch.zeros(1, *image_shape, dtype=bound_precision(network), device=device)
