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


class IntervalReLU(torch.autograd.Function):
    """ReLU of an interval, with its gradient in closed form: autograd's own chain takes twice the memory passes.

    With upper = center + radius and lower = center - radius: an active interval (lower > 0) passes unchanged, an
    inactive one (upper <= 0) becomes [0, 0], and an unstable one [0, upper], whose center and radius are upper / 2.
    """

    @staticmethod
    def forward(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        upper = torch.add(center, radius).clamp_(min=0)
        lower = torch.sub(center, radius).clamp_(min=0)
        new_center = torch.lerp(lower, upper, 0.5)
        return new_center, upper.sub_(new_center)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        center, radius = ctx.saved_tensors
        grad_center, grad_radius = grads
        active = center > radius
        unstable = torch.add(grad_center, grad_radius).mul_(0.5).mul_(center > -radius)
        return torch.where(active, grad_center, unstable), torch.where(active, grad_radius, unstable)


def propagate(layers: list[Layer], box: Box) -> list[Interval]:
    """The interval at the input of every layer (for a ReLU: its pre-activation), the box first."""
    state = Interval((box.upper + box.lower) / 2, (box.upper - box.lower) / 2)
    inputs = []
    for layer in layers:
        inputs.append(state)
        if isinstance(layer, ReLULayer):
            state = Interval(*IntervalReLU.apply(*state))
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
            "model.classifier last layer",
            type(layers[-1]).__name__ if layers else None,
            "it must be nn.Linear, to be merged with the margins; or set the verifier to robust.bounds.LirpaVerifier",
        )
    return layers[-1]


def margin_interval(last: LinearLayer, hidden: Interval, y: Tensor) -> Interval:
    """Intervals of z_k - z_y for all k, with the last layer merged: rows W_k - W_y.

    Args:
        last: the last linear layer.
        hidden: interval at its input, (B, d).
        y: labels (B,).

    Returns:
        Center and radius of shape (B, K); exactly 0 at k = y.
    """
    logits = last.center(hidden.center)
    difference = (last.weight - last.weight[y][:, None]).abs()
    radius = torch.einsum("bkd,bd->bk", difference, hidden.radius)
    return Interval(logits - logits.gather(1, y[:, None]), radius)
