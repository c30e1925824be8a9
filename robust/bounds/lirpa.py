"""Bounds of any network that auto_LiRPA can trace, residual ones included."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robust.bounds import _lirpa_shims
from robust.bounds.verifier import in_bound_precision, other_classes
from robust.errors import UnsupportedLayerError, require
from robust.threat_models import Box

Method = Literal["ibp", "crown-ibp", "crown", "alpha-crown"]


class LirpaVerifier:
    """Bounds by auto_LiRPA, of every network that it can trace: residual connections, pooling, other activations.

    Weights and buffers are looked up in the network at every call. What its ``forward`` reads besides them (numbers,
    plain tensor attributes, branches) is fixed when a network is first seen. Batch-norm uses its running statistics,
    whatever the network's mode is. See :class:`robust.bounds.verifier.Verifier` for the interface.

    Args:
        method: bound of the margins. ``ibp``: interval bound propagation, the last layer merged with the margins;
            ``crown-ibp``: one linear backward pass over IBP's intermediate intervals (Zhang et al. 2020); ``crown``:
            backward passes for the intermediate intervals too (Zhang et al. 2018); ``alpha-crown``: CROWN with
            optimised lower slopes (Xu et al. 2021), whose margins are constants without gradient.
        iterations: steps of alpha-CROWN's optimiser (Adam).
        learning_rate: its step size, for slopes in [0, 1].

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
        self._graphs: WeakKeyDictionary[nn.Module, dict[Hashable, _Graph]] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the traced graphs, which can be neither copied nor pickled."""
        return {**vars(self), "_graphs": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _graphs=WeakKeyDictionary())

    def margins(self, network: nn.Module, box: Box, y: Tensor) -> Tensor:
        """Lower bounds of z_y - z_k, shape (B, K-1); see :class:`robust.bounds.verifier.Verifier`."""
        box = in_bound_precision(network, box)
        if self.method == "alpha-crown":
            return self._optimised_margins(network, box, y)
        with torch.autocast(y.device.type, enabled=False), self._graph(network, box) as graph:
            return graph.bound(box, _margin_rows(y, graph.num_classes, box), self.method, upper=False)[0]

    def cross_entropy(self, network: nn.Module, box: Box, y: Tensor, crown_share: float = 1.0) -> Tensor:
        """Fused upper bound of the cross-entropy, shape (B,); see :class:`robust.bounds.verifier.Verifier`.

        The same for every ``method``. The cross-entropy is log E with E = sum_k exp(z_k - z_y); an upper bound of E is
        mixed of CROWN-IBP's and IBP's, both scaled by exp(-shift). Source: Xu et al. 2020, Sec. 3.3 (loss fusion).
        """
        box = in_bound_precision(network, box)
        with torch.autocast(y.device.type, enabled=False), self._graph(network, box) as graph:
            classes = torch.eye(graph.num_classes, dtype=box.lower.dtype, device=y.device)
            differences = classes - classes[y][:, None]  # rows z_k - z_y, all zero at k = y
            lowest, highest = graph.bound(box, differences, "ibp")
            if crown_share == 0:
                return highest.logsumexp(-1)
            shift = highest.detach().amax(-1, keepdim=True)
            slope, intercept = _chord(lowest, highest, shift)
            row = torch.einsum("bk,bkj->bj", slope, differences)[:, None]
            bound = graph.again(row) + intercept.sum(-1)
        # E >= exp(0), its own label's term: rounding must not push the bound below, where the log is undefined
        bound = torch.maximum(bound, (-shift.squeeze(-1)).exp().clamp(min=torch.finfo(bound.dtype).tiny))
        if crown_share < 1:
            bound = crown_share * bound + (1 - crown_share) * (highest - shift).exp().sum(-1)
        return bound.log() + shift.squeeze(-1)

    def _optimised_margins(self, network: nn.Module, box: Box, y: Tensor) -> Tensor:
        """Alpha-CROWN's margins, (B, K-1), detached."""
        require(
            box.lower.dtype == torch.float32, "method", "alpha-crown", "it needs a float32 network; or set method=crown"
        )
        options: dict[str, object] = {
            "iteration": self.iterations,
            "lr_alpha": self.learning_rate,
            "early_stop_patience": self.iterations,  # stopping early prints to stdout
        }
        device = y.device.type
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            box, y = Box(box.lower.detach().clone(), box.upper.detach().clone()), y.clone()
            graph = _Graph(network, box, "alpha-crown", options)  # for this batch only, as it keeps the slopes
            graph.bind(network, detach=True)  # it calls backward, which would add to the weights' .grad
            method = "alpha-crown" if graph.module.optimizable_activations else "crown"
            rows = _margin_rows(y, graph.num_classes, box)
            return graph.bound(box, rows, method, upper=False)[0].detach()

    @contextmanager
    def _graph(self, network: nn.Module, box: Box) -> Iterator[_Graph]:
        """The graph of a network with its present weights and statistics; traced where there is none yet."""
        graphs = self._graphs.setdefault(network, {})
        key = (box.lower.device, box.lower.dtype, box.lower.shape[1:], _structure(network))
        if key not in graphs:
            graphs[key] = _Graph(network, box, self.method)
        graph = graphs[key]
        graph.bind(network)
        try:
            yield graph
        finally:
            graph.release()


class _Graph:
    """A network as auto_LiRPA's graph of operations.

    It is traced from a copy in evaluation mode, as tracing moves and overwrites weights, and is kept out of any
    module tree; ``bind`` then points it to the network's own weights.
    """

    def __init__(
        self, network: nn.Module, box: Box, method: Method, optimiser: dict[str, object] | None = None
    ) -> None:
        name = type(network).__name__
        with torch.inference_mode(False), torch.no_grad(), _lirpa_shims.tracing() as unsupported:
            images = torch.linspace(0, 1, 3 * box.lower[0].numel(), dtype=box.lower.dtype, device=box.lower.device)
            images = images.view(3, *box.lower.shape[1:])
            try:
                traced = _for_tracing(network)
                logits = traced(images)
                self.module = _trace(traced, images[:2], method, optimiser or {})
            except Exception as error:
                what = ", ".join(unsupported) or _first_line(error)
                raise UnsupportedLayerError(f"model.classifier {name}", what, "auto_LiRPA cannot trace it") from error
            require(logits.ndim == 2, f"model.classifier {name}", tuple(logits.shape), "give logits of shape (B, K)")
            self.num_classes = logits.shape[1]
            self._check(name, images, logits, {"ibp", "crown-ibp", method} - {"alpha-crown"})
        self.release()

    def _check(self, name: str, images: Tensor, logits: Tensor, methods: set[str]) -> None:
        """With three images, one more than traced, the graph gives the network's logits, and bounds equal to them."""
        tolerance = 1e-2 * (1 + logits.abs().amax())

        def differs(other: Tensor) -> bool:
            return other.shape != logits.shape or bool(((other - logits).abs() > tolerance).any())

        try:
            baked = differs(self.module(images))
        except RuntimeError:
            baked = True
        if baked:
            remedy = "auto_LiRPA fixed its batch size; flatten with torch.flatten(x, 1), not with view or reshape"
            raise UnsupportedLayerError(f"model.classifier {name}", "forward", remedy)
        rows = torch.eye(self.num_classes).to(images).expand(3, -1, -1)
        for method in sorted(methods):
            if any(differs(side) for side in self.bound(Box(images, images.clone()), rows, method)):
                remedy = "its bounds of single images are not its logits; report the network as a bug"
                raise UnsupportedLayerError(f"model.classifier {name}", method, remedy)

    def bind(self, network: nn.Module, detach: bool = False) -> None:
        """Point the graph to the weights and statistics that the network has now."""
        weights = dict(network.named_parameters(remove_duplicate=False))
        buffers = dict(network.named_buffers(remove_duplicate=False))
        for node in self.module._modules.values():
            name = getattr(node, "ori_name", None)
            if name in weights and "param" in node._parameters:
                node._parameters["param"] = weights[name].detach() if detach else weights[name]
            elif name in buffers and "buffer" in node._buffers:
                # a copy: batch-norm may change it in place before the caller's backward pass needs it
                node._buffers["buffer"] = buffers[name].clone()

    def bound(self, box: Box, rows: Tensor, method: str, *, upper: bool = True) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds, (B, S) each, of ``rows`` (B, S, K) on the logits over the box."""
        lirpa = _lirpa_shims.load()
        ball = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=box.lower, x_U=box.upper)
        center = lirpa.BoundedTensor(((box.lower + box.upper) / 2).detach(), ball)
        return self._compute(x=(center,), C=rows, method=method, bound_upper=upper)

    def again(self, row: Tensor) -> Tensor:
        """CROWN's upper bound (B,) of one ``row`` (B, 1, K), over the intervals of the ``ibp`` bound before."""
        return self._compute(C=row, method="crown", bound_lower=False)[1].squeeze(1)

    def _compute(self, **arguments: object) -> tuple[Tensor, Tensor]:
        try:
            lower, upper = self.module.compute_bounds(**arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise UnsupportedLayerError("model.classifier", _first_line(error), "auto_LiRPA cannot bound it") from error
        return lower, upper

    def release(self) -> None:
        """Let go of the last batch and its autograd graph."""
        self.module._clear_and_set_new(None)


def _trace(network: nn.Module, images: Tensor, method: Method, optimiser: dict[str, object]) -> Any:
    """auto_LiRPA's module of a network."""
    lirpa = _lirpa_shims.load()
    options: dict[str, object] = {"param": {"auto_requires_grad": False}, "optimize_bound_args": optimiser}
    if method == "alpha-crown":
        # slopes of unstable neurons only: 0.3 mixes up their indices where most neurons, or none, are unstable
        options |= dict.fromkeys(["sparse_features_alpha", "sparse_spec_alpha", "sparse_intermediate_bounds"], False)
    if method in ("crown", "alpha-crown"):
        module = lirpa.BoundedModule(network, images, bound_opts={**options, "conv_mode": "patches"})
        if all(_exact_as_patches(node) for node in module._modules.values()):
            return module
    return lirpa.BoundedModule(network, images, bound_opts={**options, "conv_mode": "matrix"})


def _exact_as_patches(node: Any) -> bool:
    """Whether CROWN may hold its rows on this operation's output as convolution patches, which save memory.

    0.3 fails on pooling, on dilated or grouped convolutions, and on constants added to hidden layers.
    """
    kinds = [type(n).__name__.removeprefix("Bound") for n in (node, *node.inputs)]
    if kinds[0] == "Conv":
        return set(node.dilation) == {1} and node.groups == 1
    if kinds[0] in ("Add", "Sub"):
        return "Input" in kinds or not {"Params", "Buffers", "Constant"} & set(kinds)
    return kinds[0] in _PATCH_OPERATIONS


_PATCH_OPERATIONS = (
    *("Input", "Params", "Buffers", "Constant", "BatchNormalization", "Relu", "Div", "Mul", "GlobalAveragePool"),
    *("Flatten", "Reshape", "Linear", "MatMul", "Transpose"),
)


def _for_tracing(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, whose state_dict, hence the graph, holds every buffer."""
    traced = copy.deepcopy(network).eval()
    for module in traced.modules():
        module._non_persistent_buffers_set.clear()
        if type(module) is nn.Dropout:  # auto_LiRPA switches such a network to training mode, batch-norm included
            module.__class__ = _EvaluatedDropout
    return traced


class _EvaluatedDropout(nn.Dropout):
    """Dropout under another name."""


def _structure(network: nn.Module) -> Hashable:
    """What the graph depends on: the modules and the shapes of weights and buffers."""
    state = network.state_dict(keep_vars=True)
    return (
        tuple((name, type(module)) for name, module in network.named_modules()),
        tuple((name, tensor.shape) for name, tensor in state.items()),
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _margin_rows(y: Tensor, num_classes: int, box: Box) -> Tensor:
    """Rows z_y - z_k, classes ascending without y: (B, K-1, K)."""
    classes = torch.eye(num_classes, dtype=box.lower.dtype, device=y.device)
    return classes[y][:, None] - classes[other_classes(y, num_classes)]


def _chord(lowest: Tensor, highest: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the line through exp(v - shift) at both ends of [lowest, highest]; all (B, K)."""
    width = (highest - lowest).clamp(min=1e-6)
    slope = (highest - shift).exp() * -torch.expm1(-width) / width
    return slope, (lowest - shift).exp() - slope * lowest
