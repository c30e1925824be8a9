"""Check that the recorded graph computes what the network computes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robust.bounds.calls import IMAGES, MIXES, REMEDY, Recording
from robust.bounds.changes import States, attributes, version
from robust.bounds.clean_statistics import without_gradient
from robust.bounds.graph import Graph, bind
from robust.bounds.recording import record
from robust.bounds.rounding import RoundingErrors
from robust.bounds.verifier import bound_precision
from robust.errors import UnsupportedLayerError, require
from robust.modes import in_mode
from robust.passes import CountingHook, uncounted
from robust.seeds import generator
from robust.threat_models import Box

BATCH = 7  # images to record: not 1, whose axis is copied, and another number than the images that are compared
_COMPARED: WeakKeyDictionary[nn.Module, Seen] = WeakKeyDictionary()  # when each network was compared last


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
    seen = _COMPARED.get(network)
    structure, states = _structure(network, like), attributes(network)
    # nothing notes each change of a weight that a pass takes as a number: one through ``data``, one in a training
    versions = _versions(network) if weights_too else None
    if seen is None or seen.recording.reads_weights or not seen.holds(structure, states, versions):
        recording = _recorded(network, like)
        _COMPARED[network] = seen = Seen.of(network, like, recording, states)
    return bind(seen.recording, network, like.dtype)


class Seen(NamedTuple):
    """State of a network when its recording was compared; ``written`` names attributes that a pass itself writes."""

    structure: object
    states: States
    written: set[tuple[str, str]]
    versions: object
    recording: Recording

    @classmethod
    def of(cls, network: nn.Module, like: Tensor, recording: Recording, before: States) -> Seen:
        """The network after its recording, and its attributes before."""
        after = attributes(network)
        written = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        return cls(_structure(network, like), after, written, _versions(network), recording)

    def holds(self, structure: object, states: States, versions: object | None) -> bool:
        """Whether the network is the same but for what a pass writes, and, if versions are given, its weights."""
        names = (states.keys() | self.states.keys()) - self.written
        same = structure == self.structure and all(states.get(name) == self.states.get(name) for name in names)
        return same and (versions is None or versions == self.versions)


def _structure(network: nn.Module, like: Tensor) -> object:
    modules = network.named_modules(remove_duplicate=False)
    layers = [(name, id(each), type(each), hooks(each)) for name, each in modules]
    return like.shape[1:], like.device, layers, [weight.requires_grad for weight in network.parameters()]


def hooks(module: nn.Module) -> tuple[object, ...]:
    """Identities of what a module's call runs beside its class's forward: hooks, and a forward set on the module."""
    kinds = (module._forward_hooks, module._forward_pre_hooks)
    own = vars(module).get("forward")  # set on the instance
    changing = ([id(hook) for hook in kind.values() if not isinstance(hook, CountingHook)] for kind in kinds)
    return id(own) if own is not None else None, *map(tuple, changing)


def _versions(network: nn.Module) -> object:
    return tuple(map(version, (*network.parameters(), *network.buffers())))


@torch.no_grad()
def _recorded(network: nn.Module, like: Tensor) -> Recording:
    """The recording of a network, whose graph gives the values that the network has for other images."""
    dtype = bound_precision(network)
    _require_not_compiled(network)
    images = torch.rand(BATCH + 2, *like.shape[1:], generator=generator(0), dtype=torch.float64).to(like.device, dtype)
    with torch.inference_mode(False), torch.no_grad(), in_mode(network, "eval"), uncounted():
        recording, _ = record(network, images[:BATCH])
        again, values = record(network, others := images[BATCH:])
        logits = others if again.result.key == IMAGES else values[int(again.result.key)]
        require(logits.dim() == 2, "network", f"output of shape {tuple(logits.shape)}", "give logits of shape (B, K)")
        if [call.name for call in recording.calls] != [call.name for call in again.calls]:
            remedy = f"its operations differ from one pass to the next; {REMEDY}"
            raise UnsupportedLayerError("network", type(network).__name__, remedy)
        for index in recording.needed:  # an axis may have been as long as the batch by chance
            call, other = recording.calls[index], again.calls[index]
            if call.dynamic and (call.per_image, call.shape) != (other.per_image, other.shape):
                raise call.error(network, MIXES)
        _compare(network, bind(recording, network, dtype), values, others)
        _require_precise(network, again, values, dtype)
        require_alone(network, logits, others)
        return replace(recording, cut=_without_gradient(network, others))


def _without_gradient(network: nn.Module, images: Tensor) -> frozenset[str]:
    """Names of the weights that ask for a gradient and get none: behind ``detach`` or under ``no_grad``.

    None is named where the network has no backward pass, so that no training is to be followed.
    """
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    try:
        with torch.enable_grad(), without_gradient(network):
            logits = network(images)
            if not weights or not logits.requires_grad:
                return frozenset(weights)
            gradients = torch.autograd.grad(logits.sum(), list(weights.values()), allow_unused=True)
    except RuntimeError:  # also of a function without a backward pass
        return frozenset()
    return frozenset(name for name, gradient in zip(weights, gradients, strict=True) if gradient is None)


def _require_not_compiled(network: nn.Module) -> None:
    for name, module in network.named_modules():
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        what = f"network layer '{name}'" if name else "network"
        remedy = f"torch.compile hides its operations; give the network without it; {REMEDY}"
        if compiled:
            raise UnsupportedLayerError(what, type(module).__name__, remedy)


def _compare(network: nn.Module, graph: Graph, values: list[Tensor], images: Tensor) -> None:
    """Raise unless each operation gives, for these images, the value that the network had."""
    try:
        intervals = graph.propagate(Box(images, images))
    except (RuntimeError, IndexError) as error:  # a shape that was recorded for another number of images
        what = str(error).partition("\n")[0]
        remedy = f"its bound fails for {len(images)} images ({what}); {REMEDY}"
        raise UnsupportedLayerError("network", type(network).__name__, remedy) from error
    errors = RoundingErrors(graph, intervals).errors
    for node, interval, rounding in zip(graph.nodes, intervals[1:], errors[1:], strict=True):
        given = values[node.number]
        tolerance = 1e-3 * (1 + given.abs().amax()) if rounding is None else 2 * rounding
        if given.shape != interval.center.shape or bool(((given - interval.center).abs() > tolerance).any()):
            raise node.call.error(network, "its forward pass computes something else than its bound (a hook?)")


def _require_precise(network: nn.Module, recording: Recording, values: list[Tensor], dtype: torch.dtype) -> None:
    """Raise if a value on which the logits depend has a lower precision than the bounds."""
    for index in recording.needed:
        call, given = recording.calls[index], values[index].dtype
        if call.dynamic and (not given.is_floating_point or torch.finfo(given).eps > torch.finfo(dtype).eps):
            raise call.error(network, f"its result has the lower precision {given}")


def require_alone(network: nn.Module, logits: Tensor, images: Tensor) -> None:
    """Check that an image's logits are the same without the others of its batch; NaN is for others to report.

    Raises:
        UnsupportedLayerError: if they are not.
    """
    alone = network(images[:1])
    size = float(1 + logits.nan_to_num(0, 0, 0).abs().amax())
    if not torch.allclose(alone, logits[:1], rtol=1e-2, atol=1e-3 * size, equal_nan=True):
        remedy = f"an image's logits depend on the others in its batch; {REMEDY}"
        raise UnsupportedLayerError("network", type(network).__name__, remedy)
