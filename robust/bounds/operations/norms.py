"""Normalisation by an image's own statistics, in operations that have bounds: means, squares, products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robust.bounds.operations.base import Affine
from robust.bounds.operations.powers import Power
from robust.bounds.operations.registry import Operand, register, rewrite


def inverse_root(variance: Tensor, eps: float) -> Tensor:
    """1 / sqrt(variance + eps), with a bound for variances that are not negative."""
    if torch.overrides.has_torch_function_unary(variance):
        return torch.overrides.handle_torch_function(inverse_root, (variance,), variance, eps)  # type: ignore[no-any-return]
    return (variance + eps).rsqrt()


@register(inverse_root)
def _inverse_root(variance: Operand, eps: float) -> Power:
    return Power(-0.5, eps)


class Centered(Affine):
    """Activations less their mean over some axes.

    >>> Centered((-1,)).radius(torch.tensor([[1.0, 3.0]]))  # each is half of the difference
    tensor([[2., 2.]])

    Args:
        dims: the axes, counted from the last, below 0.
    """

    def __init__(self, dims: tuple[int, ...]) -> None:
        self.dims = dims

    def _count(self, shape: torch.Size) -> int:
        return math.prod(shape[dim] for dim in self.dims)

    def terms(self, *shapes: torch.Size) -> int:
        """The sum, the division and the difference."""
        return self._count(shapes[0]) + 3

    def center(self, *centers: Tensor) -> Tensor:
        """W c."""
        return centers[0] - centers[0].mean(self.dims, keepdim=True)

    def radius(self, *radii: Tensor) -> Tensor:
        """|W| r: an activation's own weight is 1 - 1/n, that of the n - 1 others -1/n."""
        own = 1 - 2 / self._count(radii[0].shape[1:])
        return (own * radii[0] + radii[0].mean(self.dims, keepdim=True)).clamp(min=0)

    def rows(self, A: Tensor, *shapes: torch.Size) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """A W, where W is symmetric."""
        return (A - A.mean(self.dims, keepdim=True),), 0.0


def centered(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Activations less their mean over the axes ``dims``."""
    if torch.overrides.has_torch_function_unary(x):
        return torch.overrides.handle_torch_function(centered, (x,), x, dims)  # type: ignore[no-any-return]
    return x - x.mean(dims, keepdim=True)


@register(centered)
def _centered(x: Operand, dims: tuple[int, ...]) -> Centered:
    return Centered(dims)


@rewrite("layer_norm")
def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    normed = _normed(x, tuple(range(-len(normalized_shape), 0)), eps)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@rewrite("group_norm")
def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    groups = x.reshape(len(x), num_groups, -1)
    normed = _normed(groups, (-1,), eps).reshape(x.shape)
    sides = (-1, *[1] * (x.dim() - 2))
    normed = normed if weight is None else normed * weight.view(sides)
    return normed if bias is None else normed + bias.view(sides)


def _normed(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    rest = centered(x, dims)
    return rest * inverse_root(rest.square().mean(dims, keepdim=True), eps)
