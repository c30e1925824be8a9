"""A network as auto_LiRPA's graph of operations, with the network's own weights, checked at first use."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust.bounds import _lirpa_shims
from robust.bounds._lirpa_causes import failing_layer, find_cause, odd_pooling
from robust.bounds.agreement import require_alone
from robust.bounds.changes import States, attributes
from robust.bounds.recording import ValueDependenceError, reads_weights
from robust.copies import copied
from robust.errors import UnsupportedLayerError, require
from robust.threat_models import Box

Method = Literal["ibp", "crown-ibp", "crown", "alpha-crown"]
RADII = (1e-3, 0.03, 0.3)  # of the boxes by which a method is checked at its first use


class LirpaGraph:
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
            traced = network
            try:
                traced = _for_tracing(network)
                before = attributes(traced)
                self.reads_weights = _reads_weights(traced, self._images)
                after = attributes(traced)
                self._written = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
                if (cause := find_cause(traced, self._images)) is not None:
                    raise cause.error()
                self._pooling = odd_pooling(traced)
                logits = traced(self._images)
                require_alone(traced, logits, self._images)
                self.module, self.patches = _trace(traced, self._images[:2], optimiser, patches=patches)
            except UnsupportedLayerError:
                raise
            except Exception as error:
                operation = ", ".join(unsupported) or _first_line(error)
                name = failing_layer(traced, self._images, lambda layer, x: _failure(layer, x, optimiser) == operation)
                raise UnsupportedLayerError(
                    name or self.name, operation, "auto_LiRPA cannot trace it; replace that layer"
                ) from error
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
        self._attributes = self._kept_attributes(network)
        self._states = [(part, dict(vars(part))) for part in (self.module, *self.module._modules.values())]

    def is_of(self, network: nn.Module) -> bool:
        """Whether the network's attributes are those of its tracing; weights and statistics may differ.

        Nothing notes each change of a weight that a pass takes as a number.
        """
        return not self.reads_weights and self._kept_attributes(network) == self._attributes

    def _kept_attributes(self, network: nn.Module) -> States:
        """The attributes that a pass does not write itself."""
        return {name: state for name, state in attributes(network).items() if name not in self._written}

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
                # a copy: batch-norm may change it in place before the caller's backward pass needs it; a constant, as
                # torch's own batch_norm cannot be differentiated to its statistics
                node._buffers["buffer"] = buffers[name].detach().clone()

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


def _reads_weights(network: nn.Module, images: Tensor) -> bool:
    """Whether a pass takes a weight as a number, which the graph then holds as a constant.

    Raises:
        UnsupportedLayerError: if it takes the value of an image as a number: tracing would follow one branch alone.
    """
    try:
        return reads_weights(network, images)
    except ValueDependenceError as error:
        what, _, _ = str(error).partition("; ")
        remedy = f"the network's operations must not depend on an image's values ({what})"
        raise UnsupportedLayerError("network", type(network).__name__, remedy) from None


def _for_tracing(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, whose state_dict, hence the graph, holds every buffer."""
    traced = copied(network).eval()
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


def _failure(network: nn.Module, images: Tensor, optimiser: dict[str, float]) -> str | None:
    """The cause why auto_LiRPA cannot trace a network or a part of one; None if it can."""
    with _lirpa_shims.tracing() as unsupported:
        try:
            _trace(copied(network), images, optimiser, patches=False)
        except Exception as error:
            return ", ".join(unsupported) or _first_line(error)
    return None


def _exact_as_patches(node: nn.Module | None) -> bool:
    """Whether CROWN may hold its rows on this operation's output as convolution patches, which save memory.

    It fails on pooling, on dilated or grouped convolutions, and on constants that are added to hidden layers. Sums of
    two branches whose strides or paddings differ have wrong bounds for some shapes of images, which the boxes of the
    check do not always show.
    """
    settings = vars(node)
    kind, *inputs = (type(n).__name__.removeprefix("Bound") for n in (node, *settings["inputs"]))
    if kind == "Conv":
        return set(settings["dilation"]) == {1} and settings["groups"] == 1
    if kind in ("Add", "Sub"):
        return "Input" in inputs
    return kind in _PATCH_OPERATIONS


_PATCH_OPERATIONS = (
    *("Input", "Params", "Buffers", "Constant", "BatchNormalization", "Relu", "Div", "Mul", "GlobalAveragePool"),
    *("Flatten", "Reshape", "Linear", "MatMul", "Transpose"),
)


def _close(bound: Tensor, logits: Tensor) -> bool:
    """Equal but for rounding. Weights that are not finite are for others to report."""
    return bound.shape == logits.shape and not bool(((bound - logits).abs() > 5e-3 * (1 + logits.abs().amax())).any())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0]
