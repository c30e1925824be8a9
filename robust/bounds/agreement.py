"""Does the own verifier bound what the network computes? Its operations, compared with other passes of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from robust.bounds.graph import Graph, bind
from robust.bounds.recording import IMAGES, REMEDY, Recording, record
from robust.bounds.rounding import RoundingErrors
from robust.bounds.verifier import bound_precision
from robust.errors import UnsupportedLayerError, require
from robust.modes import in_mode
from robust.passes import CountingHook, uncounted
from robust.seeds import generator
from robust.threat_models import Box

BATCH = 7  # images to record: no usual number of channels, so that an axis of images is not taken for another
PLAIN = {int, float, bool, str, type(None), torch.dtype}
_OWN = {"training", *vars(nn.Module())}  # attributes of every module: its mode, and what is looked at by other ways
# of each network: what it consisted of, the versions of its weights, and its recording, when it was compared last
_COMPARED: WeakKeyDictionary[nn.Module, tuple[Any, Any, Recording]] = WeakKeyDictionary()


def checked_graph(network: nn.Module, like: Tensor, *, weights_too: bool) -> Graph:
    """The graph of a network, recorded and compared where that has not been done for the network as it is.

    Modules, their attributes and hooks are looked at each time. So are the weights' versions if ``weights_too``: a
    verdict wants that, a training loss does not.

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K).
        like: images (B, C, H, W) in the precision of the bounds.
        weights_too: compare again after every change of a weight.

    Raises:
        UnsupportedLayerError: naming the first layer that has no bound, or that computes something else than its bound
            assumes.
    """
    structure = _structure(network, like)
    versions = _versions(network) if weights_too else None
    seen_structure, seen_versions, recording = _COMPARED.get(network, (None, None, None))
    if recording is None or seen_structure != structure or (weights_too and seen_versions != versions):
        recording = _recorded(network, like)
        _COMPARED[network] = _structure(network, like), _versions(network), recording  # which a pass may have changed
    return bind(recording, network, like.dtype)


def _structure(network: nn.Module, like: Tensor) -> object:
    parts = tuple(
        (name, id(module), type(module), _settings(module), hooks(module))
        for name, module in network.named_modules(remove_duplicate=False)
    )
    return like.shape[1:], like.device, parts


def _settings(owner: object, within: tuple[int, ...] = ()) -> object:
    """The attributes of a module or another object, but its mode, as values that differ where an attribute changed."""
    ignored = _OWN if isinstance(owner, nn.Module) else ()
    inside = (*within, id(owner))
    items = [item for item in vars(owner).items() if item[0] not in ignored]
    return [(name, id(value) if _is_private(name, value) else _state(value, inside)) for name, value in items]


def _is_private(name: str, value: object) -> bool:
    """Whether this is an object behind a private name, such as the trainer of a LightningModule."""
    return name.startswith("_") and hasattr(value, "__dict__") and not isinstance(value, Tensor)


def _state(value: object, within: tuple[int, ...]) -> object:
    """What changes with the value; an object's attributes, a tensor's version, an array's bytes."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        return _version(value)
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, list | tuple):
        return [type(value), *(_state(each, within) for each in value)]
    if isinstance(value, Mapping):
        return [type(value), *((_state(name, within), _state(each, within)) for name, each in value.items())]
    if not hasattr(value, "__dict__"):
        return type(value), repr(value)
    known = isinstance(value, type) or (callable(value) and not isinstance(value, nn.Module)) or id(value) in within
    return id(value) if known else (id(value), _settings(value, within))


def hooks(module: nn.Module) -> tuple[object, ...]:
    """What runs at a module's call beside its class's forward: hooks, and a forward set on the module itself."""
    kinds = (module._forward_hooks, module._forward_pre_hooks)
    own = vars(module).get("forward")  # set on the instance
    changing = ([id(hook) for hook in kind.values() if not isinstance(hook, CountingHook)] for kind in kinds)
    return id(own) if own is not None else None, *map(tuple, changing)


def _versions(network: nn.Module) -> object:
    return tuple(map(_version, (*network.parameters(), *network.buffers())))


def _version(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version


@torch.no_grad()
def _recorded(network: nn.Module, like: Tensor) -> Recording:
    """The recording of a network, whose graph gives the values that the network has for other images."""
    dtype = bound_precision(network)
    images = torch.rand(BATCH + 2, *like.shape[1:], generator=generator(0), dtype=torch.float64).to(like.device, dtype)
    with in_mode(network, "eval"), uncounted():
        recording, _ = record(network, images[:BATCH])
        again, values = record(network, others := images[BATCH:])
        logits = others if again.result.key == IMAGES else values[int(again.result.key)]
        require(logits.dim() == 2, "network", f"output of shape {tuple(logits.shape)}", "give logits of shape (B, K)")
        if [call.name for call in recording.calls] != [call.name for call in again.calls]:
            remedy = f"its operations differ from one pass to the next; {REMEDY}"
            raise UnsupportedLayerError("network", type(network).__name__, remedy)
        _compare(network, bind(recording, network, dtype), values, others)
        _require_alone(network, logits, others)
    return recording


def _compare(network: nn.Module, graph: Graph, values: list[Tensor], images: Tensor) -> None:
    """Raise unless each operation gives, for these images, the value that the network had."""
    intervals = graph.propagate(Box(images, images))
    errors = RoundingErrors(graph, intervals).errors
    for node, interval, error in zip(graph.nodes, intervals[1:], errors[1:], strict=True):
        given = values[node.number]
        tolerance = 1e-3 * (1 + given.abs().amax()) if error is None else 2 * error
        if given.shape != interval.center.shape or bool(((given - interval.center).abs() > tolerance).any()):
            raise node.call.error(network, "its forward pass computes something else than its bound (a hook?)")


def _require_alone(network: nn.Module, logits: Tensor, images: Tensor) -> None:
    """Raise unless an image's logits are the same without the others of its batch; NaN is for others to report."""
    alone = network(images[:1])
    size = float(1 + logits.nan_to_num(0, 0, 0).abs().amax())
    if not torch.allclose(alone, logits[:1], rtol=1e-2, atol=1e-3 * size, equal_nan=True):
        remedy = f"an image's logits depend on the others in its batch; {REMEDY}"
        raise UnsupportedLayerError("network", type(network).__name__, remedy)
