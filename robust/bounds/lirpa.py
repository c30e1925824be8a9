"""Bounds of any network that auto_LiRPA can trace, residual ones included."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robust.bounds import _lirpa_shims
from robust.bounds._lirpa_graph import LirpaGraph, Method
from robust.bounds.agreement import hooks
from robust.bounds.fusion import chord, mixed_bound
from robust.bounds.verifier import check_box, check_crown_weight, full_precision, in_bound_precision, other_classes
from robust.checks import as_classes, check_labels
from robust.errors import SettingError, UnsupportedLayerError, require
from robust.passes import INTERVALS, LINEAR_ROW, reported
from robust.threat_models import Box, CutBall, Region


class LirpaVerifier:
    """Bounds by auto_LiRPA: of residual networks, pooling, other activations and whatever else it can trace.

    Weights and buffers are looked up in the network at every call. What its ``forward`` reads besides them (numbers,
    plain tensor attributes, branches) is fixed when a network is first seen. Batch-norm uses its running statistics
    and dropout is off, whatever the network's mode is. See :class:`robust.bounds.verifier.Verifier` for the interface.

    Args:
        method: bound of the margins. ``ibp``: interval bound propagation, the last layer merged with the margins;
            ``crown-ibp``: one linear backward pass over IBP's intermediate intervals (Zhang et al. 2020); ``crown``:
            backward passes for the intermediate intervals too (Zhang et al. 2018); ``alpha-crown``: CROWN with
            optimised lower slopes (Xu et al. 2021), whose margins are constants without gradient. The last two hold
            a row for each hidden neuron, so they are for small networks and batches.
        iterations: number of steps of alpha-CROWN's optimiser (Adam).
        learning_rate: step size of that optimiser, for slopes in [0, 1].

    Raises:
        SettingError: for another method or a number out of range; at first use, if auto_LiRPA is not installed.
        UnsupportedLayerError: when it meets a network that auto_LiRPA cannot trace or bound.
    """

    def __init__(self, *, method: Method = "crown-ibp", iterations: int = 20, learning_rate: float = 0.5) -> None:
        require(method in get_args(Method), "method", method, f"give one of {', '.join(get_args(Method))}")
        require(iterations >= 1, "iterations", iterations, "give at least 1")
        require(learning_rate > 0, "learning_rate", learning_rate, "give a positive step size")
        self.method = method
        self.iterations = iterations
        self.learning_rate = learning_rate
        self._graphs: WeakKeyDictionary[nn.Module, dict[Hashable, LirpaGraph]] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the graphs, which can be neither copied nor pickled."""
        return {name: value for name, value in vars(self).items() if name != "_graphs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _graphs=WeakKeyDictionary())

    def margins(self, network: nn.Module, box: Region, y: Tensor) -> Tensor:
        """Lower bounds of z_y - z_k, shape (B, K-1); see :class:`robust.bounds.verifier.Verifier`."""
        box, y = _checked(network, box), as_classes(y)
        if self.method == "alpha-crown":
            return self._optimised_margins(network, box, y)
        with self._graph(network, box, [self.method]) as graph:
            check_labels(y, len(box.lower), graph.num_classes)
            return graph.bound(box, _margin_rows(y, graph.num_classes, box), self.method, upper=False)[0]

    def cross_entropy(self, network: nn.Module, box: Region, y: Tensor, crown_weight: float = 1.0) -> Tensor:
        """Fused upper bound of the cross-entropy, shape (B,); see :class:`robust.bounds.verifier.Verifier`.

        The same for every ``method``. The cross-entropy is log E with E = sum_k exp(z_k - z_y); an upper bound of E is
        mixed of CROWN-IBP's and IBP's, both scaled by exp(-shift). Source: Xu et al. 2020, Sec. 3.3 (loss fusion).
        """
        check_crown_weight(crown_weight)
        box, y = _checked(network, box), as_classes(y)
        methods: list[Method] = ["ibp"] if crown_weight == 0 else ["ibp", "crown-ibp"]
        with self._graph(network, box, methods) as graph:
            check_labels(y, len(box.lower), graph.num_classes)
            classes = torch.eye(graph.num_classes, dtype=box.lower.dtype, device=y.device)
            differences = classes - classes[y][:, None]  # rows z_k - z_y, all zero at k = y
            lowest, highest = graph.bound(box, differences, "ibp")
            if crown_weight == 0:
                return reported(highest.logsumexp(-1), network, box.lower, INTERVALS)
            shift = highest.detach().amax(-1, keepdim=True)
            slope, intercept = chord(lowest, highest, highest - lowest, shift)
            row = torch.einsum("bk,bkj->bj", slope, differences)
            crown = graph.crown_over_ibp(row) + intercept.sum(-1)
            bound = mixed_bound(crown, highest, shift, crown_weight)
            return reported(bound, network, box.lower, INTERVALS + LINEAR_ROW)

    def _optimised_margins(self, network: nn.Module, box: Box, y: Tensor) -> Tensor:
        """Alpha-CROWN's margins, (B, K-1), detached."""
        remedy = "it needs a float32 network; or set method to crown"
        require(box.lower.dtype == torch.float32, "method", "alpha-crown", remedy)
        with torch.inference_mode(False), torch.enable_grad():
            box, y = Box(*(side.detach().clone() for side in box)), y.clone()  # inference tensors take no gradient
            with self._graph(network, box, ["crown"]) as graph:
                check_labels(y, len(box.lower), graph.num_classes)
                graph.bind(network, detached=True)  # auto_LiRPA calls backward, which would fill the weights' .grad
                method: Method = "alpha-crown" if graph.has_slopes() else "crown"
                return graph.bound(box, _margin_rows(y, graph.num_classes, box), method, upper=False)[0].detach()

    @contextmanager
    def _graph(self, network: nn.Module, box: Box, methods: list[Method]) -> Iterator[LirpaGraph]:
        """The graph of a network with its present weights and statistics, checked for ``methods``.

        Where convolution patches fail the check, the graph is traced again with matrices, which take more memory.
        """
        graphs = self._graphs.setdefault(network, {})
        key = (box.lower.device, box.lower.dtype, box.lower.shape[1:], _structure(network))
        optimiser = {"iteration": self.iterations, "lr_alpha": self.learning_rate}
        with full_precision(box.lower.device), _lirpa_shims.deep_recursion(), ExitStack() as stack:
            patches = self.method in ("crown", "alpha-crown")
            if key not in graphs or not graphs[key].is_of(network):
                graphs[key] = LirpaGraph(network, box, optimiser, patches=patches)
            graph = graphs[key]
            try:
                graph.prepare(network, methods)
            except UnsupportedLayerError:
                if not graph.patches:
                    raise
                graph = graphs[key] = LirpaGraph(network, box, optimiser, patches=False)
                graph.prepare(network, methods)
            stack.callback(graph.release)
            yield graph


def _checked(network: nn.Module, box: Region) -> Box:
    if isinstance(box, CutBall):
        remedy = "LirpaVerifier bounds boxes alone; set the verifier to robust.bounds.FeedForwardVerifier"
        raise SettingError("box", f"{box.norm} ball", remedy)
    box = in_bound_precision(network, box)
    check_box((box.lower + box.upper) / 2, (box.upper - box.lower) / 2)
    return box


def _structure(network: nn.Module) -> Hashable:
    """Everything that the graph depends on: modules, settings, hooks, and the shapes of weights and buffers."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    modules = tuple(
        (name, type(module), module.extra_repr(), hooks(module))
        for name, module in network.named_modules(remove_duplicate=False)
    )
    return modules, tuple((name, tensor.shape) for name, tensor in tensors)


def _margin_rows(y: Tensor, num_classes: int, box: Box) -> Tensor:
    """Rows z_y - z_k, classes ascending without y: (B, K-1, K)."""
    classes = torch.eye(num_classes, dtype=box.lower.dtype, device=y.device)
    return classes[y][:, None] - classes[other_classes(y, num_classes)]
