"""Counts the passes through networks, so that trainings of equal cost can be compared.

A forward pass of one image counts 1. A backward pass of one image counts 2, the usual convention, whether its gradient
goes to the weights, to the image or to both; it is counted where the gradient enters the network at its output. Bounds
do not call the network: their verifiers report intervals as 2 passes, since each layer takes a center and a radius, and
each row of a linear bound as 1 more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robust.modes import in_mode
from robust.random import global_seed

INTERVALS = 2  # passes of interval bound propagation
LINEAR_ROW = 1  # passes of one row of a linear bound
BACKWARD = 2  # passes of a backward pass

_current: ContextVar[PassCounter | None] = ContextVar("passes", default=None)


class PassCounter:
    """Counts the images that pass forward and backward through networks, between :meth:`start` and :meth:`stop`.

    A call of a part of a network, or one that an exception ends, does not count.

    >>> network = nn.Linear(3, 2)
    >>> counter = PassCounter({"classifier": network})
    >>> counter.start()
    >>> network(torch.zeros(5, 3)).sum().backward()
    >>> counter.stop()
    >>> counter.forward, counter.backward, counter.equivalents()
    ({'classifier': 5}, {'classifier': 5}, 15.0)

    Args:
        networks: networks by name; the first one is the unit of :meth:`equivalents`.

    Attributes:
        forward: number of forward passes of one image, by network.
        backward: number of backward passes of one image, by network.
        multiplications: number of multiplications in a forward pass of one image, by network, if :meth:`measure`
            found it.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.forward = dict.fromkeys(networks, 0)
        self.backward = dict.fromkeys(networks, 0)
        self.multiplications: dict[str, int] = {}
        self._networks = dict(networks)
        self._inputs: dict[str, Tensor] = {}  # a blank input of one image
        self._handles = [
            network.register_forward_hook(CountingHook(self, name)) for name, network in self._networks.items()
        ]

    def start(self) -> None:
        """Count from now on, in place of any other counter."""
        _current.set(self)

    def stop(self) -> None:
        """Stop counting."""
        if _current.get() is self:
            _current.set(None)

    def detach(self) -> None:
        """Stop counting, and remove the hooks from the networks."""
        self.stop()
        for handle in self._handles:
            handle.remove()

    def add(self, name: str, output: Tensor, passes: int) -> None:
        """Count ``passes`` of the images of an output (B, ...), and as many backward when its gradient is computed."""
        count = passes * len(output)
        self.forward[name] += count
        if output.requires_grad:

            def add_backward(_gradient: Tensor) -> None:
                self.backward[name] += count

            output.register_hook(add_backward)  # type: ignore[no-untyped-call]

    def note_input(self, name: str, inputs: tuple[object, ...]) -> None:
        """Note the shape of a network's inputs, at its first call."""
        if name not in self._inputs and len(inputs) == 1 and isinstance(inputs[0], Tensor):
            self._inputs[name] = torch.zeros_like(inputs[0][:1])

    def measure(self) -> None:
        """Count the multiplications of each network that was called with one tensor; a single network needs none."""
        for name, blank in self._inputs.items() if len(self._networks) > 1 else ():
            if name not in self.multiplications:
                self.multiplications[name] = _multiplications(self._networks[name], blank)

    def equivalents(self) -> float:
        """All passes as forward passes of one image through the first network.

        Passes of other networks count by their multiplications relative to the first one's, if both are known.
        """
        self.measure()
        sizes = [self.multiplications.get(name, 0) for name in self._networks]
        return sum(
            (self.forward[name] + BACKWARD * self.backward[name]) * (size / sizes[0] if size and sizes[0] else 1.0)
            for name, size in zip(self._networks, sizes, strict=True)
        )

    def name_of(self, network: nn.Module) -> str | None:
        """Name of a network that is counted."""
        return next((name for name, each in self._networks.items() if each is network), None)


class CountingHook:
    """A forward hook of a counter; it does not change what the network computes, and copies of it count nothing."""

    def __init__(self, counter: PassCounter | None, name: str) -> None:
        self.counter, self.name = counter, name

    def __deepcopy__(self, memo: dict[int, object]) -> CountingHook:
        return CountingHook(None, self.name)

    def __call__(self, _module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        """Count a call of the network."""
        if self.counter is not None and _current.get() is self.counter and isinstance(output, Tensor):
            self.counter.note_input(self.name, inputs)
            self.counter.add(self.name, output, 1)


def reported(bound: Tensor, network: nn.Module, x: Tensor, passes: int) -> Tensor:
    """A bound (B, ...) of a network on images ``x`` (B, C, H, W), after its cost of ``passes`` an image is counted."""
    counter = _current.get()
    if counter is not None and (name := counter.name_of(network)) is not None:
        counter.note_input(name, (x,))
        counter.add(name, bound, passes)
    return bound


@contextmanager
def uncounted() -> Iterator[None]:
    """Count no passes: they are no part of the work, such as a check."""
    counter = _current.get()
    _current.set(None)
    try:
        yield
    finally:
        _current.set(counter)


@torch.no_grad()
def _multiplications(network: nn.Module, blank: Tensor) -> int:
    # a network behind another one had inputs of lower precision under autocast; weights return to the CPU after a run
    blank = blank.to(next(network.parameters(), blank))
    with (
        torch.autocast(blank.device.type, enabled=False),
        uncounted(),
        in_mode(network, "eval"),
        global_seed(blank.device, 0),
        FlopCounterMode(display=False) as flops,
    ):
        network(blank)
    return int(flops.get_total_flops()) // 2  # it counts additions too
