"""Max-pooling."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.bounds.operations.base import Arithmetic, Interval, Operation
from robust.bounds.operations.registry import Operand, UnboundedError, register
from robust.convolution import pair

Windows = tuple[int, int]


class MaxPool(Operation):
    """The largest activation of each window of (B, C, H, W).

    Linear bounds: below by the activation with the largest lower end, which is the result where it dominates its
    window; elsewhere above by the largest upper end. Source: Boopathy et al. 2019 (CNN-Cert) and CROWN's practice.

    >>> pool, h = MaxPool((1, 2), (1, 2), (0, 0), (1, 1)), torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    >>> pool.backward(torch.ones(1, 1, 1, 1, 1), Interval(h, torch.full_like(h, 0.5)))  # the second one dominates
    ((tensor([[[[[0., 1.]]]]]),), tensor([[0.]]))

    Args:
        kernel: height and width of a window.
        stride: vertical and horizontal distance between windows.
        padding: rows and columns of -inf added at both sides.
        dilation: vertical and horizontal distance between the activations of a window.
        ceil: keep an incomplete last window.
    """

    def __init__(
        self, kernel: Windows, stride: Windows, padding: Windows, dilation: Windows, *, ceil: bool = False
    ) -> None:
        self.windows = kernel, stride, padding, dilation, ceil

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, *self.windows)

    def interval(self, *inputs: Interval) -> Interval:
        """The largest lower and upper ends."""
        return Interval.between(self._pool(inputs[0].lower), self._pool(inputs[0].upper))

    def backward(self, A: Tensor, *inputs: Interval) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """A negative coefficient goes to the activation that is best for sure, a positive one if it dominates."""
        lower, upper = inputs[0].lower, inputs[0].upper
        index = self._index(lower)  # (n, windows) in the flat padded image
        ends = self._window(lower, index), self._window(upper, index)
        best = ends[0].argmax(2, keepdim=True)
        others = ends[1].scatter(2, best, -math.inf).amax(2)
        dominates = others <= ends[0].gather(2, best).squeeze(2)  # (B, C, windows)
        top = ends[1].amax(2).masked_fill(dominates, 0.0)
        A, out = A.flatten(3), A.flatten(3).clamp(min=0)
        to_best = torch.where(dominates[:, None], A, A - out)
        constant = (out * top[:, None]).flatten(2).sum(-1)
        target = index.expand(*best.shape[:2], *index.shape).gather(2, best).squeeze(2)
        return (self._spread(to_best, target, lower.shape[-2:]),), constant

    def _index(self, like: Tensor) -> Tensor:
        """For each window, the flat indices of its activations in the padded image: (kernel, windows)."""
        kernel, stride, _, dilation, _ = self.windows
        height, width = self._padded(like.shape[-2:])
        rows, columns = (
            torch.arange(0, size - d * (k - 1), s, device=like.device)[None]
            + d * torch.arange(k, device=like.device)[:, None]
            for size, k, s, d in zip((height, width), kernel, stride, dilation, strict=True)
        )
        count = self._pool(like[:1, :1])[0, 0]
        rows, columns = rows[:, : count.shape[0]], columns[:, : count.shape[1]]
        return (rows[:, None, :, None] * width + columns[None, :, None, :]).reshape(math.prod(kernel), -1)

    def _padded(self, sides: torch.Size) -> tuple[int, int]:
        """Height and width with padding, and so much more at the far side that every window is whole."""
        height, width = (
            side + 2 * p + (s - 1 if self.windows[4] else 0)
            for side, s, p in zip(sides, self.windows[1], self.windows[2], strict=True)
        )
        return height, width

    def _margins(self, sides: torch.Size) -> tuple[int, int, int, int]:
        """Padding at each side: left, right, top, bottom."""
        (height, width), (top, left) = self._padded(sides), self.windows[2]
        return left, width - sides[1] - left, top, height - sides[0] - top

    def _window(self, values: Tensor, index: Tensor) -> Tensor:
        """Values (B, C, H, W) by window, (B, C, kernel, windows)."""
        flat = F.pad(values, self._margins(values.shape[-2:]), value=-math.inf).flatten(2)
        return flat[..., index]

    def _spread(self, A: Tensor, target: Tensor, sides: torch.Size) -> Tensor:
        """Rows (B, S, C, windows) added up where each window's target (B, C, windows) is: (B, S, C, H, W)."""
        left, _, top, _ = self._margins(sides)
        height, width = self._padded(sides)
        flat = A.new_zeros(*A.shape[:3], height * width)
        flat = flat.scatter_add(3, target[:, None].expand_as(A), A)
        return flat.view(*A.shape[:3], height, width)[..., top : top + sides[0], left : left + sides[1]]

    def error(self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic) -> Tensor | None:
        """The largest of a window, and the rounding of the ends."""
        return self._pool(errors[0]) + 8 * arithmetic.gamma(1) * self._pool(inputs[0].size)

    def row_error(
        self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic
    ) -> Tensor | None:
        """An activation above its interval is above the line by so much; coefficients of windows are added up."""
        size = self._pool(inputs[0].size + errors[0])
        rounded = arithmetic.gamma(8 + math.prod(self.windows[0])) + arithmetic.of_sum(size)
        return 2 * self._pool(errors[0]) + 4 * rounded * size


@register("max_pool2d", "max_pool2d_with_indices")
def _max_pool2d(
    x: Operand,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    part: int = 0,
) -> MaxPool:
    if part == 1:
        raise UnboundedError("it uses the indices of the largest")
    stride = stride or kernel_size  # none, or an empty tuple
    return MaxPool(pair(kernel_size), pair(stride), pair(padding), pair(dilation), ceil=ceil_mode)


@register("adaptive_max_pool2d")
def _adaptive_max_pool2d(x: Operand, output_size: Any, return_indices: bool = False) -> MaxPool:
    sides = tuple(zip(x.shape[-2:], x.output[-2:], strict=True))
    if return_indices or any(side % out for side, out in sides):
        raise UnboundedError("it has bounds of output sizes that divide the input's")
    height, width = (side // out for side, out in sides)
    return MaxPool((height, width), (height, width), (0, 0), (1, 1))
