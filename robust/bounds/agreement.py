"""Does the own verifier bound what the network computes? A comparison at boxes of radius zero."""

from __future__ import annotations

from collections.abc import Hashable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robust.bounds.interval import last_linear, propagate
from robust.bounds.layers import Layer
from robust.bounds.rounding import RoundingErrors
from robust.bounds.sequential import feed_forward, sequence
from robust.errors import UnsupportedLayerError, require
from robust.modes import in_mode
from robust.passes import CountingHook, uncounted
from robust.seeds import generator
from robust.threat_models import Box

# of each network: what it consisted of, and the versions of its weights, when it was compared last
_COMPARED: WeakKeyDictionary[nn.Module, tuple[Hashable, Hashable]] = WeakKeyDictionary()


def checked_layers(network: nn.Module, like: Tensor, *, weights_too: bool) -> list[Layer]:
    """The layers of a network, compared with its forward pass where that has not been done for the network as it is.

    Modules, their settings and hooks are looked at each time. So are the weights' versions if ``weights_too``: a
    verdict wants that, a training loss does not.

    Args:
        network: a nest of ``nn.Sequential``.
        like: images (B, C, H, W) in the precision of the network.
        weights_too: compare again after every change of a weight.

    Raises:
        UnsupportedLayerError: naming the first layer that computes something else than its bound assumes, or that has
            no bound.
    """
    structure = _structure(network, like)
    versions = _versions(network) if weights_too else None
    seen_structure, seen_versions = _COMPARED.get(network, (None, None))
    if seen_structure != structure or (weights_too and seen_versions != versions):
        _compare(network, like)
        _COMPARED[network] = structure, _versions(network)  # which a hook may have changed
    return feed_forward(network, like.dtype)


def _structure(network: nn.Module, like: Tensor) -> Hashable:
    parts = tuple(
        (name, id(module), type(module), module.extra_repr(), hooks(module))
        for name, module in network.named_modules(remove_duplicate=False)
    )
    return like.shape[1:], like.dtype, like.device, parts


def hooks(module: nn.Module) -> Hashable:
    """What runs at a module's call beside its class's forward: hooks, and a forward set on the module itself."""
    kinds = (module._forward_hooks, module._forward_pre_hooks)
    own = vars(module).get("forward")  # set on the instance
    changing = ([id(hook) for hook in kind.values() if not isinstance(hook, CountingHook)] for kind in kinds)
    return id(own) if own is not None else None, *map(tuple, changing)


def _versions(network: nn.Module) -> Hashable:
    tensors = (*network.parameters(), *network.buffers())
    return tuple((id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)


@torch.no_grad()
def _compare(network: nn.Module, like: Tensor) -> None:
    images = torch.rand(2, *like.shape[1:], generator=generator(0), dtype=like.dtype).to(like.device)
    with in_mode(network, "eval"), uncounted():
        logits = network(images)  # first, as a hook may set weights in a forward pass
        layers = feed_forward(network, like.dtype)
        last = last_linear(layers)
        require(logits.dim() == 2, "network", f"output of shape {tuple(logits.shape)}", "give logits of shape (B, K)")
        inputs = propagate(layers, Box(images, images))
        errors = RoundingErrors(layers, inputs).errors
        centers = [*(interval.center for interval in inputs[1:]), last.center(inputs[-1].center)]
        hidden = images
        for (name, module), center, error in zip(sequence(network), centers, errors[1:], strict=True):
            hidden = module(hidden)
            _require_equal(f"network layer '{name}'", type(module).__name__, hidden, center, error)
        _require_equal("network", type(network).__name__, logits, centers[-1], errors[-1])


def _require_equal(name: str, kind: str, given: Tensor, bounded: Tensor, error: Tensor) -> None:
    """Raise unless both are equal but for rounding; values that are not finite are for others to report."""
    differs = given.shape != bounded.shape or bool(((given - bounded).abs() > 2 * error).any())
    if differs:
        remedy = "its forward pass computes something else than its attributes say (a hook?); set the verifier to "
        raise UnsupportedLayerError(name, kind, f"{remedy}robust.bounds.LirpaVerifier, or remove what changes it")
