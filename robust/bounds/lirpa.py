"""Bounds of any network that auto_LiRPA can trace, residual ones included."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robust.bounds import _lirpa_shims
from robust.bounds._lirpa_causes import find_cause, odd_pooling
from robust.bounds.agreement import hooks
from robust.bounds.verifier import check_box, full_precision, in_bound_precision, other_classes
from robust.checks import check_labels
from robust.errors import UnsupportedLayerError, require
from robust.threat_models import Box

Method = Literal["ibp", "crown-ibp", "crown", "alpha-crown"]
RADII = (1e-3, 0.03, 0.3)  # of the boxes by which a method is checked at its first use


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
        """Copies and pickles leave out the graphs, which can be neither copied nor pickled."""
        return {name: value for name, value in vars(self).items() if name != "_graphs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _graphs=WeakKeyDictionary())

    def margins(self, network: nn.Module, box: Box, y: Tensor) -> Tensor:
        """Lower bounds of z_y - z_k, shape (B, K-1); see :class:`robust.bounds.verifier.Verifier`."""
        box = _checked(network, box)
        if self.method == "alpha-crown":
            return self._optimised_margins(network, box, y)
        with self._graph(network, box, [self.method]) as graph:
            check_labels(y, len(box.lower), graph.num_classes)
            return graph.bound(box, _margin_rows(y, graph.num_classes, box), self.method, upper=False)[0]

    def cross_entropy(self, network: nn.Module, box: Box, y: Tensor, crown_share: float = 1.0) -> Tensor:
        """Fused upper bound of the cross-entropy, shape (B,); see :class:`robust.bounds.verifier.Verifier`.

        The same for every ``method``. The cross-entropy is log E with E = sum_k exp(z_k - z_y); an upper bound of E is
        mixed of CROWN-IBP's and IBP's, both scaled by exp(-shift). Source: Xu et al. 2020, Sec. 3.3 (loss fusion).
        """
        box = _checked(network, box)
        methods: list[Method] = ["ibp"] if crown_share == 0 else ["ibp", "crown-ibp"]
        with self._graph(network, box, methods) as graph:
            check_labels(y, len(box.lower), graph.num_classes)
            classes = torch.eye(graph.num_classes, dtype=box.lower.dtype, device=y.device)
            differences = classes - classes[y][:, None]  # rows z_k - z_y, all zero at k = y
            lowest, highest = graph.bound(box, differences, "ibp")
            if crown_share == 0:
                return highest.logsumexp(-1)
            shift = highest.detach().amax(-1, keepdim=True)
            slope, intercept = _chord(lowest, highest, shift)
            row = torch.einsum("bk,bkj->bj", slope, differences)
            bound = graph.crown_over_ibp(row) + intercept.sum(-1)
            # E >= exp(0), its own label's term: rounding must not push the bound below, where the log is undefined
            bound = torch.maximum(bound, (-shift.squeeze(-1)).exp().clamp(min=torch.finfo(bound.dtype).tiny))
            if crown_share < 1:
                bound = crown_share * bound + (1 - crown_share) * (highest - shift).exp().sum(-1)
            return bound.log() + shift.squeeze(-1)

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
    def _graph(self, network: nn.Module, box: Box, methods: list[Method]) -> Iterator[_Graph]:
        """The graph of a network with its present weights and statistics, checked for ``methods``.

        Where convolution patches fail the check, the graph is traced again with matrices, which take more memory.
        """
        graphs = self._graphs.setdefault(network, {})
        key = (box.lower.device, box.lower.dtype, box.lower.shape[1:], _structure(network))
        optimiser = {"iteration": self.iterations, "lr_alpha": self.learning_rate}
        with full_precision(box.lower.device), _lirpa_shims.deep_recursion(), ExitStack() as stack:
            patches = self.method in ("crown", "alpha-crown")
            if key not in graphs:
                graphs[key] = _Graph(network, box, optimiser, patches=patches)
            graph = graphs[key]
            try:
                graph.prepare(network, methods)
            except UnsupportedLayerError:
                if not graph.patches:
                    raise
                graph = graphs[key] = _Graph(network, box, optimiser, patches=False)
                graph.prepare(network, methods)
            stack.callback(graph.release)
            yield graph


class _Graph:
    """A network as auto_LiRPA's graph of operations.

    It is traced from a copy in evaluation mode, as tracing moves and overwrites weights, and is kept out of any
    module tree; ``bind`` then points it to the network's own weights.
    """

    def __init__(self, network: nn.Module, box: Box, optimiser: dict[str, float], *, patches: bool) -> None:
        self.name = f"network {type(network).__name__}"
        self._checked: set[Method] = set()
        with torch.inference_mode(False), torch.no_grad(), _lirpa_shims.tracing() as unsupported:
            count = 3 * math.prod(box.lower.shape[1:])
            images = torch.linspace(0, 1, count, dtype=box.lower.dtype, device=box.lower.device)
            self._images = images.view(3, *box.lower.shape[1:])
            traced = _for_tracing(network)
            if (cause := find_cause(traced, self._images)) is not None:
                raise cause.error()
            self._pooling = odd_pooling(traced)
            try:
                logits = traced(self._images)
                self.module, self.patches = _trace(traced, self._images[:2], optimiser, patches=patches)
            except Exception as error:
                operation = ", ".join(unsupported) or _first_line(error)
                raise UnsupportedLayerError(self.name, operation, "auto_LiRPA cannot trace it") from error
            require(logits.ndim == 2, self.name, tuple(logits.shape), "its logits must have shape (B, K)")
            self.num_classes = logits.shape[1]
            if not self._gives(self.module, logits):
                whole, _ = _trace(traced, self._images, optimiser, patches=False)
                remedy = "auto_LiRPA computes something else than its forward pass"
                if self._gives(whole, logits):
                    remedy = "auto_LiRPA fixes the batch size it traces; flatten with torch.flatten(x, 1), not view or "
                    remedy += "reshape"
                raise UnsupportedLayerError(self.name, "forward", remedy)
            self.module._clear_and_set_new(None)
        self._states = [(part, dict(vars(part))) for part in (self.module, *self.module._modules.values())]

    def _gives(self, module: Any, logits: Tensor) -> bool:
        """Whether a graph gives the network's logits for three images, one more than are traced."""
        try:
            return _close(module(self._images), logits)
        except RuntimeError:
            return False

    def prepare(self, network: nn.Module, methods: list[Method]) -> None:
        """Point the graph to the network's own weights, and check each method at its first use.

        Raises:
            UnsupportedLayerError: if a method cannot bound the network, or not soundly.
        """
        for method in methods:
            if method in self._checked:
                continue
            try:
                with torch.inference_mode(False):  # whose tensors cannot enter a graph
                    self.bind(network)
                    self._check(method)
            finally:
                self.release()
            self._checked.add(method)
        self.bind(network)

    def _check(self, method: Method) -> None:
        """Bounds of three single images are their logits, and boxes hold the logits of their worst corners."""
        rows = torch.eye(self.num_classes).to(self._images).expand(3, -1, -1)
        with torch.no_grad():
            logits = self.module(self._images)
            bounds = self.bound(Box(self._images, self._images.clone()), rows, method)
        if not all(_close(side, logits) for side in bounds):
            remedy = "auto_LiRPA's bounds of a single image are not its logits; use another method"
            raise UnsupportedLayerError(self.name, method, remedy)
        for radius in RADII:
            box = Box((self._images - radius).clamp(min=0), (self._images + 0.6 * radius).clamp(max=1))
            corners = self._worst_corners(box)
            with torch.no_grad():
                lower, upper = self.bound(box, rows, method)
            slack = 1e-4 * (1 + corners.abs().amax())
            if bool(((corners < lower - slack) | (corners > upper + slack)).any()):
                remedy = "auto_LiRPA's bounds of a box do not hold its corners: this version of it is not sound here"
                raise UnsupportedLayerError(self.name, method, remedy)

    def _worst_corners(self, box: Box) -> Tensor:
        """Logits (2K, 3, K) at the corners of three boxes to which each logit's gradient points, up and down."""
        with torch.enable_grad():
            middle = ((box.lower + box.upper) / 2).requires_grad_()
            logits = self.module(middle)
            gradients = [torch.autograd.grad(z.sum(), middle, retain_graph=True)[0] for z in logits.unbind(1)]
        with torch.no_grad():
            ups = [torch.where(gradient > 0, box.upper, box.lower) for gradient in gradients]
            downs = [torch.where(gradient > 0, box.lower, box.upper) for gradient in gradients]
            return torch.stack([self.module(corner) for corner in (*ups, *downs)])

    def bind(self, network: nn.Module, *, detached: bool = False) -> None:
        """Point the graph to the weights and statistics that the network has now."""
        weights = dict(network.named_parameters(remove_duplicate=False))
        buffers = dict(network.named_buffers(remove_duplicate=False))
        for node in self.module._modules.values():
            name = getattr(node, "ori_name", None)
            if name in weights and "param" in node._parameters:
                node._parameters["param"] = weights[name].detach() if detached else weights[name]
            elif name in buffers and "buffer" in node._buffers:
                # a copy: batch-norm may change it in place before the caller's backward pass needs it
                node._buffers["buffer"] = buffers[name].clone()

    def has_slopes(self) -> bool:
        """Whether there is anything for alpha-CROWN to optimise."""
        return bool(self.module.optimizable_activations)

    def bound(self, box: Box, rows: Tensor, method: Method, *, upper: bool = True) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds, (B, S) each, of ``rows`` (B, S, K) on the logits over the box."""
        lirpa = _lirpa_shims.load()
        ball = lirpa.PerturbationLpNorm(norm=math.inf, x_L=box.lower, x_U=box.upper)
        center = lirpa.BoundedTensor(((box.lower + box.upper) / 2).detach(), ball)
        return self._compute(x=(center,), C=rows, method=method, bound_upper=upper)

    def crown_over_ibp(self, row: Tensor) -> Tensor:
        """CROWN's upper bound (B,) of a ``row`` (B, K) on the logits, over the intervals of the IBP just before."""
        return self._compute(C=row[:, None], method="crown", bound_lower=False)[1].squeeze(1)

    def _compute(self, **arguments: object) -> tuple[Tensor, Tensor]:
        try:
            lower, upper = self.module.compute_bounds(**arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self._pooling is not None:
                raise self._pooling.error() from error
            raise UnsupportedLayerError(self.name, _first_line(error), "auto_LiRPA cannot bound it") from error
        return lower, upper

    def release(self) -> None:
        """Let go of the last batch, its autograd graph and its slopes: back to the state after tracing."""
        for part, state in self._states:
            vars(part).clear()
            vars(part).update(state)


def _checked(network: nn.Module, box: Box) -> Box:
    box = in_bound_precision(network, box)
    check_box((box.lower + box.upper) / 2, (box.upper - box.lower) / 2)
    return box


def _for_tracing(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, whose state_dict, hence the graph, holds every buffer."""
    traced = copy.deepcopy(network).eval()
    for module in traced.modules():
        module._non_persistent_buffers_set.clear()
        if type(module) is nn.Dropout:  # by this name, auto_LiRPA would trace in training mode, batch-norm included
            module.__class__ = _EvaluatedDropout
    return traced


class _EvaluatedDropout(nn.Dropout):
    """Dropout under another name."""


def _trace(network: nn.Module, images: Tensor, optimiser: dict[str, float], *, patches: bool) -> tuple[Any, bool]:
    """auto_LiRPA's module of a network in evaluation mode, and whether it uses convolution patches."""
    lirpa = _lirpa_shims.load()
    options: dict[str, object] = {
        "param": {"auto_requires_grad": False},
        "optimize_bound_args": {**optimiser, "early_stop_patience": optimiser["iteration"]},  # stopping early prints
        # CROWN of an example's unstable neurons only would depend on which are unstable in the batch's other examples
        "sparse_intermediate_bounds": False,
        "sparse_features_alpha": False,
        "sparse_spec_alpha": False,
        "use_full_conv_alpha": False,  # alpha-CROWN: a channel's pixels share their slopes, 10 times faster
    }
    if patches:
        module = lirpa.BoundedModule(network, images, bound_opts={**options, "conv_mode": "patches"})
        if all(map(_exact_as_patches, module._modules.values())):
            return module, True
    return lirpa.BoundedModule(network, images, bound_opts={**options, "conv_mode": "matrix"}), False


def _exact_as_patches(node: nn.Module | None) -> bool:
    """Whether CROWN may hold its rows on this operation's output as convolution patches, which save memory.

    It fails on pooling, on dilated or grouped convolutions, and on constants that are added to hidden layers.
    """
    settings = vars(node)
    kind, *inputs = (type(n).__name__.removeprefix("Bound") for n in (node, *settings["inputs"]))
    if kind == "Conv":
        return set(settings["dilation"]) == {1} and settings["groups"] == 1
    if kind in ("Add", "Sub"):
        return "Input" in inputs or not {"Params", "Buffers", "Constant"} & set(inputs)
    return kind in _PATCH_OPERATIONS


_PATCH_OPERATIONS = (
    *("Input", "Params", "Buffers", "Constant", "BatchNormalization", "Relu", "Div", "Mul", "GlobalAveragePool"),
    *("Flatten", "Reshape", "Linear", "MatMul", "Transpose"),
)


def _structure(network: nn.Module) -> Hashable:
    """What the graph depends on: modules, settings and hooks, and the shapes of weights and buffers."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    modules = tuple(
        (name, type(module), module.extra_repr(), hooks(module))
        for name, module in network.named_modules(remove_duplicate=False)
    )
    return modules, tuple((name, tensor.shape) for name, tensor in tensors)


def _close(bound: Tensor, logits: Tensor) -> bool:
    """Equal but for rounding. Weights that are not finite are for others to report."""
    return bound.shape == logits.shape and not bool(((bound - logits).abs() > 5e-3 * (1 + logits.abs().amax())).any())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0]


def _margin_rows(y: Tensor, num_classes: int, box: Box) -> Tensor:
    """Rows z_y - z_k, classes ascending without y: (B, K-1, K)."""
    classes = torch.eye(num_classes, dtype=box.lower.dtype, device=y.device)
    return classes[y][:, None] - classes[other_classes(y, num_classes)]


def _chord(lowest: Tensor, highest: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the line through exp(v - shift) at both ends of [lowest, highest]; all (B, K)."""
    width = highest - lowest
    guarded = width.clamp(min=1e-6)  # the chord of a wider interval from the same lower end lies above
    slope = (highest - shift + (guarded - width)).exp() * -torch.expm1(-guarded) / guarded
    return slope, (lowest - shift).exp() - slope * lowest
