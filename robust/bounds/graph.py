"""A network as a graph of operations with its present weights, and bounds that go through it, forwards and backwards.

A sequence of layers is a chain in this graph: there is one code for both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust.bounds.calls import IMAGES, MIXES, Call, Recording, Ref, mapped
from robust.bounds.operations import Arithmetic, Interval, Operand, Operation, UnboundedError
from robust.bounds.operations.balls import BallInterval
from robust.bounds.operations.registry import builder_of
from robust.threat_models import Box, Region


class Node(NamedTuple):
    """An operation, the indices of the values that it takes, and the call that it was recorded as, with its number.

    Value 0 is the box of images, value i + 1 the result of node i.
    """

    operation: Operation
    inputs: tuple[int, ...]
    call: Call
    number: int

    def interval(self, values: list[Interval]) -> Interval:
        """The interval of its result, from the intervals of the values before."""
        inputs = [values[i] for i in self.inputs]
        interval = self.operation.interval(*inputs)
        first = inputs[0]
        return first.through(self.operation, interval) if isinstance(first, BallInterval) else interval


class Graph(NamedTuple):
    """The nodes in the order of the forward pass, the value that is the logits, their number, and the precision."""

    nodes: list[Node]
    output: int
    num_classes: int
    dtype: torch.dtype

    @property
    def last(self) -> Operation | None:
        """The operation that gives the logits; None where these are the images."""
        return self.nodes[self.output - 1].operation if self.output else None

    @property
    def rounding_known(self) -> bool:
        """Whether the rounding of every operation is known."""
        return all(node.operation.rounding_known for node in self.nodes)

    def propagate(self, box: Region) -> list[Interval]:
        """The interval of every value, the set of images first (Gowal et al. 2018).

        >>> from robust.bounds.recording import record
        >>> difference = nn.Linear(2, 1)
        >>> _ = difference.load_state_dict({"weight": torch.tensor([[1.0, -1.0]]), "bias": torch.tensor([0.25])})
        >>> network = nn.Sequential(nn.Flatten(), difference)
        >>> graph = bind(record(network, torch.rand(2, 1, 1, 2))[0], network, torch.float32)
        >>> center, radius = graph.propagate(Box(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), 0.5)))[-1]
        >>> center.tolist(), radius.tolist()  # x_1 - x_2 + 1/4 is in [-1/4, 3/4]
        ([[0.25]], [[0.5]])
        """
        values: list[Interval] = [Interval.between(*box) if isinstance(box, Box) else BallInterval.of(box)]
        for node in self.nodes:
            values.append(node.interval(values))
        return values

    def enclose(self, box: Box) -> list[Interval]:
        """The interval of every value, each wide enough to hold it in exact arithmetic, whatever rounding did before.

        The rounding of every operation must be known. It costs a few sums on top of ``propagate``; bounds of the
        errors themselves cost another product of each affine operation.
        """
        arithmetic = Arithmetic(self.dtype, len(self.nodes))
        images = Interval.between(*box)
        values = [Interval(images.center, images.radius.add(images.size, alpha=8 * arithmetic.gamma(1)))]
        for operation, inputs, *_ in self.nodes:
            values.append(operation.enclosure(tuple(values[i] for i in inputs), arithmetic))
        return values

    def upper_bound(
        self, values: list[Interval], A: Tensor, value: int | None = None, *, spent: bool = False
    ) -> Tensor:
        """Upper bounds of ``A z`` over the box by linear bounds backwards (CROWN, Zhang et al. 2018).

        Args:
            values: the interval of every value, as from ``propagate``.
            A: rows (B, S, *shape) on a value.
            value: index of that value; by default that of the logits.
            spent: drop each interval from the list after its last use: those before activations are much of the memory.

        Returns:
            Shape (B, S).
        """
        value = self.output if value is None else value
        return self._upper_bound(values, A, value, spent=spent)[0]

    def upper_bound_and_error(
        self, values: list[Interval], A: Tensor, weights: list[Tensor | None], value: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same bounds, and by how much an exact ``A z`` may exceed them; both (B, S).

        Args:
            values: the interval of every value, as for ``upper_bound``.
            A: rows (B, S, *shape) on a value.
            weights: weights of the rows on each value, from :class:`robust.bounds.rounding.RoundingErrors`.
            value: index of that value, as for ``upper_bound``.
        """
        bound, error = self._upper_bound(values, A, self.output if value is None else value, weights)
        largest = max(interval.center[0].numel() for interval in values)
        return bound, Arithmetic(A.dtype, len(self.nodes)).inflation(largest) * error

    def _upper_bound(
        self,
        values: list[Interval],
        A: Tensor,
        value: int,
        weights: list[Tensor | None] | None = None,
        spent: bool = False,
    ) -> tuple[Tensor, Tensor]:
        constant = torch.zeros(A.shape[:2], dtype=A.dtype, device=A.device)
        error = torch.zeros_like(constant)
        rows = {value: A}
        del A
        for index in range(value, 0, -1):
            if index not in rows:
                continue
            row, (operation, inputs, *_) = rows.pop(index), self.nodes[index - 1]
            if weights is not None:
                error = error + _weighed(row, weights[index])
            parts, beta = operation.backward_from(values[index], row, *(values[i] for i in inputs))
            if spent:
                del values[index:]
            constant = constant + beta
            for i, part in zip(inputs, parts, strict=True):
                rows[i] = rows[i] + part if i in rows else part
        if 0 not in rows:
            return constant, error
        if weights is not None:
            error = error + _weighed(rows[0], weights[0])
        return constant + values[0].highest(rows[0]), error


def _weighed(A: Tensor, weight: Tensor | None) -> Tensor:
    """Sum of absolute coefficients (B, S, *shape) times weights (B, *shape): (B, S)."""
    assert weight is not None
    return (A.flatten(2).abs() @ weight.flatten(1)[..., None]).squeeze(-1)


def bind(recording: Recording, network: nn.Module, dtype: torch.dtype) -> Graph:
    """The graph of a recorded network with the weights that it has now, in a precision.

    Weights that are computed, as pruned ones are, are computed anew, with a gradient to what they come from. Weights
    that the logits give no gradient, as behind ``detach``, get none by the bounds.

    Raises:
        UnsupportedLayerError: naming layer, operation and line of the first call that has no bound.
    """
    binder = _Binder(recording, network, dtype)
    for index, refs in recording.needed.items():
        binder.add(index, refs)
    return Graph(binder.nodes, binder.places[recording.result.key], recording.shape_of(recording.result).numel(), dtype)


class _Binder:
    """Adds recorded calls to a graph one by one; a call on weights alone is computed.

    Attributes:
        nodes: the graph's nodes so far.
        places: index of the graph's value for each recorded tensor that depends on the images.
    """

    def __init__(self, recording: Recording, network: nn.Module, dtype: torch.dtype) -> None:
        self.nodes: list[Node] = []
        self.places: dict[int | str, int] = {IMAGES: 0}
        self._recording, self._network, self._dtype = recording, network, dtype
        self._held: dict[int | str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
        self._held |= dict(network.named_buffers(remove_duplicate=False))
        frozen = {name.rpartition(".")[0] for name in recording.cut}  # layers; statistics of a batch have a gradient
        buffers = {name for name, _ in network.named_buffers() if name.rpartition(".")[0] in frozen}
        self._held |= {name: self._held[name].detach() for name in recording.cut | buffers}

    def add(self, index: int, refs: list[Ref]) -> None:
        """Add the call of that index, which takes these tensors."""
        call = self._recording.calls[index]
        if not call.dynamic:
            args, named = mapped((call.arguments, call.named), self._native)
            result = call.function(*args, **named)  # type: ignore[operator]
            self._held[index] = result if call.part is None else result[call.part]
            return
        if not call.per_image:
            raise call.error(self._network, MIXES)
        inputs = tuple(self.places[ref.key] for ref in refs if ref.dynamic)
        operation = self._operation(call)
        if operation is None:
            self.places[index] = inputs[0]
            return
        self.nodes.append(Node(operation, inputs, call, index))
        self.places[index] = len(self.nodes)

    def _operation(self, call: Call) -> Operation | None:
        function = call.function
        module = self._network.get_submodule(function) if isinstance(function, str) else None
        builder = builder_of(call.name if module is None else module)
        if builder is None:
            raise call.error(self._network)
        args, named = mapped((call.arguments, call.named), lambda value: self._bound(value, call.shape))
        if call.part is not None:
            named = {**named, "part": call.part}
        try:
            operation = builder(*args, **named) if module is None else builder(module, *args, **named)
            return operation if module is None else self._trained(operation, str(function))
        except UnboundedError as error:
            raise call.error(self._network, str(error)) from None
        except TypeError as error:
            raise call.error(self._network, f"its bound does not know these arguments ({error})") from error

    def _trained(self, operation: Operation | None, layer: str) -> Operation | None:
        """The operation of a layer, with fixed weights if the logits give them no gradient."""
        if operation is not None and any(name.startswith(f"{layer}.") for name in self._recording.cut):
            vars(operation).update({k: v.detach() for k, v in vars(operation).items() if isinstance(v, Tensor)})
        return operation

    def _native(self, value: Any) -> Any:
        return self._held[value.key] if isinstance(value, Ref) else value

    def _bound(self, value: Any, output: torch.Size) -> Any:
        """An argument for a builder: an operand, a constant in the precision of the bounds, or what it was."""
        if isinstance(value, Ref) and value.dynamic:
            return Operand(self._recording.shape_of(value), output)
        value = self._native(value)
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
