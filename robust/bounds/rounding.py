"""Bounds of the rounding errors of interval and linear bounds: what they are worth in exact arithmetic.

A sum of n rounded products differs from the exact one by at most gamma_n times the sum of absolute products, in
whatever order it is taken, with gamma_n = n u / (1 - n u) and the unit roundoff u (Higham 2002, Sec. 3.1). That holds
for direct sums, as CPUs take them (cuDNN may take Winograd's), and where nothing underflows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robust.bounds.interval import Interval
from robust.bounds.layers import Layer, ReLULayer


def gamma(count: int, dtype: torch.dtype) -> float:
    """Largest relative error of ``count`` roundings in a row."""
    roundoff = torch.finfo(dtype).eps / 2
    return count * roundoff / (1 - count * roundoff)


class RoundingErrors:
    """By how far exact activations and linear bounds may lie outside the computed ones.

    Args:
        layers: of the network, in forward order.
        inputs: the computed interval at each layer's input, the box first (see ``interval.propagate``). The exact box
            may differ from it by the rounding of ``x - budgets`` and ``x + budgets``.

    Attributes:
        errors: at each layer's input, of that shape, and last at the outputs: no exact activation is further outside
            of its interval.
    """

    def __init__(self, layers: list[Layer], inputs: list[Interval]) -> None:
        self._layers, self._inputs, self._dtype = layers, inputs, inputs[0].center.dtype
        self.errors = [8 * gamma(1, self._dtype) * _size(inputs[0])]
        for layer, interval in zip(layers, inputs, strict=True):
            self.errors.append(self._through(layer, interval, self.errors[-1]))

    def _through(self, layer: Layer, interval: Interval, error: Tensor) -> Tensor:
        """The error at a layer's output, of that at its input."""
        if isinstance(layer, ReLULayer):
            return error + 8 * gamma(1, self._dtype) * _size(interval)
        shape = error.shape[1:]
        g = gamma(layer.terms(shape) + 8, self._dtype)
        new = layer.radius(error) + g * (layer.radius(_size(interval) + error) + layer.offset(shape))
        return inflated(new, layer.terms(shape))

    def of_margins(self, y: Tensor) -> Tensor:
        """Largest error (B, K) of IBP's bounds of z_k - z_y with the last layer merged; 0 at k = y."""
        error = self.errors[-1]
        both = error + error.gather(1, y[:, None])
        return both.scatter(1, y[:, None], 0.0)

    def row_weights(self) -> list[Tensor]:
        """What the absolute coefficients of a row at each layer's output are to be multiplied with, last the box's.

        The sum of all these products bounds the error of the linear bound.
        """
        weights = list(map(self._row_weight, self._layers, self._inputs, self.errors[:-1]))
        return [*weights, self.errors[0] + self._of_sum(self._inputs[0]) * _size(self._inputs[0])]

    def _row_weight(self, layer: Layer, interval: Interval, error: Tensor) -> Tensor:
        if isinstance(layer, ReLULayer):
            # an activation outside of its interval is above the upper line by at most its distance from it
            intercept = (interval.radius - interval.center.abs()).clamp(min=0)
            return error + 8 * gamma(1, self._dtype) * _size(interval) + self._of_sum(interval) * intercept
        shape = error.shape[1:]
        products = gamma(layer.terms(shape) + 8, self._dtype) * layer.radius(_size(interval) + error)
        return products + self._of_sum(Interval(products, products)) * layer.offset(shape)

    def _of_sum(self, interval: Interval) -> float:
        """Relative error of a sum over an example's activations, and over the layers."""
        return gamma(interval.center[0].numel() + len(self._layers) + 8, self._dtype)


def inflated(error: Tensor, count: int) -> Tensor:
    """An upper bound of an error that is itself a rounded sum of ``count`` terms, none of them negative."""
    return error * (1 + 4 * gamma(count + 8, error.dtype))


def _size(interval: Interval) -> Tensor:
    return interval.center.abs() + interval.radius
