"""Interval bound propagation (Gowal et al. 2018) in midpoint-radius form."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust.bounds.layers import Layer, LinearLayer, ReLULayer
from robust.errors import UnsupportedLayerError
from robust.threat_models import Box


class Interval(NamedTuple):
    """``center - radius <= h <= center + radius``, both of shape (B, *shape)."""

    center: Tensor
    radius: Tensor


class _IntervalReLU(torch.autograd.Function):
    """ReLU of an interval, [relu(c - r), relu(c + r)], with its gradient in closed form.

    This is elementwise work that memory bounds: as autograd's own chain it takes twice the passes, and masks as bool
    tensors or ``where`` are several times slower on CPU than ``threshold_backward`` (grad where x > 0, else 0).
    """

    @staticmethod
    def forward(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        upper = torch.add(center, radius).clamp_(min=0)
        lower = torch.sub(center, radius).clamp_(min=0)
        new_center = torch.lerp(lower, upper, 0.5)
        return new_center, upper - new_center, lower, upper

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        *_, lower, upper = output
        ctx.mark_non_differentiable(lower, upper)
        ctx.save_for_backward(lower, upper)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_center: Tensor | None, grad_radius: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
        lower, upper = ctx.saved_tensors
        grad_center = torch.zeros_like(lower) if grad_center is None else grad_center
        grad_radius = torch.zeros_like(lower) if grad_radius is None else grad_radius
        by_upper = torch.ops.aten.threshold_backward(grad_center + grad_radius, upper, 0)
        by_lower = torch.ops.aten.threshold_backward(grad_center - grad_radius, lower, 0)
        grad_center = torch.lerp(by_lower, by_upper, 0.5)
        return grad_center, by_upper.sub_(grad_center)


def propagate(layers: list[Layer], box: Box) -> list[Interval]:
    """The interval at the input of every layer (for a ReLU: its pre-activation), the box first.

    >>> from torch import nn
    >>> from robust.bounds.sequential import feed_forward
    >>> difference = nn.Linear(2, 1)
    >>> _ = difference.load_state_dict({"weight": torch.tensor([[1.0, -1.0]]), "bias": torch.tensor([0.25])})
    >>> layers = feed_forward(nn.Sequential(nn.Flatten(), difference, nn.ReLU()), torch.float32)
    >>> box = Box(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), 0.5))
    >>> center, radius = propagate(layers, box)[-1]  # what the ReLU sees: x_1 - x_2 + 1/4 in [-1/4, 3/4]
    >>> center.tolist(), radius.tolist()
    ([[0.25]], [[0.5]])
    """
    state = Interval((box.upper + box.lower) / 2, (box.upper - box.lower) / 2)
    inputs = []
    for layer in layers:
        inputs.append(state)
        if isinstance(layer, ReLULayer):
            state = Interval(*_IntervalReLU.apply(*state)[:2])
        else:
            state = Interval(layer.center(state.center), layer.radius(state.radius))
    return inputs


def last_linear(layers: list[Layer]) -> LinearLayer:
    """The last layer, which is merged with the margins.

    Raises:
        UnsupportedLayerError: if it is not linear.
    """
    if not layers or not isinstance(layers[-1], LinearLayer):
        raise UnsupportedLayerError(
            "network's last layer",
            type(layers[-1]).__name__ if layers else None,
            "it must be nn.Linear, to be merged with the margins; or set the verifier to robust.bounds.LirpaVerifier",
        )
    return layers[-1]


def margin_interval(last: LinearLayer, hidden: Interval, y: Tensor, classes_at_once: int | None = None) -> Interval:
    """Intervals of z_k - z_y for all k, with the last layer merged: rows W_k - W_y.

    Args:
        last: the last linear layer.
        hidden: interval at its input, (B, d).
        y: labels (B,).
        classes_at_once: how many rows of each example are held in memory; all of them by default.

    Returns:
        Center and radius of shape (B, K); exactly 0 at k = y.
    """
    logits = last.center(hidden.center)
    of_label = last.weight[y][:, None]
    parts = torch.split(last.weight, classes_at_once or len(last.weight))
    radii = [torch.einsum("bkd,bd->bk", (part - of_label).abs(), hidden.radius) for part in parts]
    return Interval(logits - logits.gather(1, y[:, None]), radii[0] if len(radii) == 1 else torch.cat(radii, 1))
