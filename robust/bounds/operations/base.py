"""Base classes of operations: interval, linear bounds, and the rounding errors of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from robust.threat_models import Norm


class Interval(NamedTuple):
    """``center - radius <= h <= center + radius``, both of shape (B, *shape)."""

    center: Tensor
    radius: Tensor

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Interval:
        """The interval of these two ends."""
        return cls((lower + upper) / 2, (upper - lower) / 2)

    @property
    def lower(self) -> Tensor:
        """The lower end."""
        return self.center - self.radius

    @property
    def upper(self) -> Tensor:
        """The upper end."""
        return self.center + self.radius

    @property
    def size(self) -> Tensor:
        """The largest absolute value inside."""
        return self.center.abs().add_(self.radius)

    @property
    def point(self) -> Tensor:
        """A point of the set that the interval encloses: (B, *shape)."""
        return self.center

    @property
    def rounding(self) -> float:
        """Factor of the rounding errors of an affine function of this interval."""
        return 1.0

    def highest(self, A: Tensor) -> Tensor:
        """The largest values (B, S) of rows (B, S, *shape)."""
        rows, center, radius = A.flatten(2), self.center.flatten(1)[..., None], self.radius.flatten(1)[..., None]
        return (rows @ center + rows.abs() @ radius).squeeze(-1)

    def select(self, images: Tensor) -> Interval:
        """Select the intervals of the images (b,)."""
        return Interval(self.center[images], self.radius[images])


class Arithmetic(NamedTuple):
    """Rounding of one precision, in a graph of so many operations.

    A sum of n rounded products differs from the exact one by at most gamma_n times the sum of absolute products, in
    whatever order it is taken, with gamma_n = n u / (1 - n u) and the unit roundoff u (Higham 2002, Sec. 3.1).
    """

    dtype: torch.dtype
    depth: int

    def gamma(self, count: int) -> float:
        """Largest relative error of ``count`` roundings in a row."""
        roundoff = torch.finfo(self.dtype).eps / 2
        return count * roundoff / (1 - count * roundoff)

    def of_sum(self, values: Tensor) -> float:
        """Relative error of a sum over an example's values (B, *shape), and over the operations."""
        return self.gamma(values[0].numel() + self.depth + 8)

    def inflation(self, count: int) -> float:
        """Factor that makes a rounded sum of ``count`` terms, none negative, an upper bound of the exact one."""
        return 1 + 4 * self.gamma(count + 8)


class Operation(ABC):
    """One operation of a network, h_1, ..., h_n -> f(h_1, ..., h_n), example by example.

    Linear bounds are rows ``A`` of shape (B, S, *shape): S functions of the activations of each example.
    """

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """An interval that holds f of every point of the inputs' intervals: (B, *in) each -> (B, *out)."""

    @abstractmethod
    def backward(self, A: Tensor, *inputs: Interval) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """Bound rows on the output from above by rows and constants on the inputs.

        A f(h_1, ..., h_n) <= A_1 h_1 + ... + A_n h_n + constant for all h within ``inputs``.

        Args:
            A: (B, S, *out).
            inputs: the intervals of h_1, ..., h_n.

        Returns:
            A_i of shape (B, S, *in_i), and the constants (B, S).
        """

    def backward_from(
        self, result: Interval, A: Tensor, *inputs: Interval
    ) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """As :meth:`backward`, given the interval of the result, which autograd keeps for the next layer.

        A gradient that is computed from it needs less memory.
        """
        return self.backward(A, *inputs)

    def bends(self, h: Interval) -> Tensor:
        """Where f may not be linear over the interval of an input, bool (B, *in): elsewhere linear bounds are exact."""
        return torch.ones_like(h.center, dtype=torch.bool)

    @property
    def rounding_known(self) -> bool:
        """Whether ``error`` and ``row_error`` give bounds, rather than None: both are overridden, by default."""
        kind = type(self)
        return kind.error is not Operation.error and kind.row_error is not Operation.row_error

    def error(self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic) -> Tensor | None:
        """Upper bound of how far an exact output lies outside the computed interval, (B, *out); None: not known.

        It grows with the intervals and with the errors: the error of an interval that holds several intervals holds for
        each of them.

        Args:
            inputs: the computed intervals of h_1, ..., h_n.
            errors: upper bounds of how far exact inputs lie outside these intervals.
            arithmetic: precision in which the interval was computed.
        """
        return None

    def enclosure(self, inputs: tuple[Interval, ...], arithmetic: Arithmetic) -> Interval:
        """An interval that holds f of every point of the inputs' intervals in exact arithmetic, (B, *out).

        It is wider than :meth:`interval` by ``error``, which must be known, of inputs without errors.
        """
        error = self.error(inputs, tuple(torch.zeros_like(h.center) for h in inputs), arithmetic)
        assert error is not None
        center, radius = self.interval(*inputs)
        return Interval(center, radius + error)

    def row_error(
        self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic
    ) -> Tensor | None:
        """Weights of the absolute coefficients of a row on the output in the error bound, (B, *out); None: not known.

        The weighted sum bounds by how much the exact ``A f(h)`` may exceed the linear bound on the inputs. The weights
        of an interval hold for intervals inside it, as in ``error``. The arguments are those of ``error``.
        """
        return None


class Affine(Operation):
    """f(h_1, ..., h_n) = W_1 h_1 + ... + W_n h_n + b."""

    @property
    def diagonal(self) -> bool:
        """Whether each output depends on one input at most, and each input enters one output at most."""
        return False

    def row_norms(self, scale: Tensor, norm: Norm) -> Tensor | None:
        """Dual norms of the rows of ``W diag(scale)``, of one input; None: not known.

        Args:
            scale: 0 or above, (1, *in).
            norm: norm of the input, ``l2`` or ``l1``; the dual norm of ``l1`` is the largest absolute entry.

        Returns:
            Shape (1, *out).
        """
        return None

    @abstractmethod
    def terms(self, *shapes: torch.Size) -> int:
        """Number of roundings on the way to an output, or to a coefficient of a row on the input, at most.

        Args:
            shapes: shapes of the inputs of one example.
        """

    @abstractmethod
    def center(self, *centers: Tensor) -> Tensor:
        """Midpoint of the output interval, W c + b: (B, *in) each -> (B, *out)."""

    @abstractmethod
    def radius(self, *radii: Tensor) -> Tensor:
        """Half width of the output interval, |W| r: (B, *in) each -> (B, *out)."""

    @abstractmethod
    def rows(self, A: Tensor, *shapes: torch.Size) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """Rows on the output as rows and constants on the inputs: A f(h) = (A W_1) h_1 + ... + A b.

        Args:
            A: (B, S, *out).
            shapes: shapes of the inputs of one example.

        Returns:
            A W_i of shape (B, S, *in_i), and A b of shape (B, S).
        """

    def offset(self) -> Tensor | float:
        """Sum of the absolute terms that b is summed from; broadcasts to (B, *out); 0.0 without b."""
        return 0.0

    def interval(self, *inputs: Interval) -> Interval:
        """W c + b and |W| r."""
        return Interval(self.center(*(h.center for h in inputs)), self.radius(*(h.radius for h in inputs)))

    def backward(self, A: Tensor, *inputs: Interval) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """The rows are exact."""
        return self.rows(A, *(h.center.shape[1:] for h in inputs))

    def error(self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic) -> Tensor | None:
        """|W| e, and the rounding of the sums, inflated by that of this bound itself."""
        terms = self.terms(*(error.shape[1:] for error in errors))
        gamma, inflation = arithmetic.gamma(terms + 8), arithmetic.inflation(terms)
        # in place: new memory takes longer than the sums
        rounded = (
            h.size.add_(error).mul_(gamma * inflation).add_(error, alpha=inflation)
            for h, error in zip(inputs, errors, strict=True)
        )
        error, offset = self.radius(*rounded), self.offset()
        return error if isinstance(offset, float) else error + gamma * inflation * offset

    def enclosure(self, inputs: tuple[Interval, ...], arithmetic: Arithmetic) -> Interval:
        """W c + b and |W| (r + kappa (|c| + r)) + kappa |b|, so that no other product is needed.

        kappa = 2 gamma / (1 - gamma) covers the rounding of both sums: the second one loses gamma of what it adds.
        """
        gamma = arithmetic.gamma(self.terms(*(h.center.shape[1:] for h in inputs)) + 8)
        kappa = 2 * gamma / (1 - gamma)
        wider = (torch.add(h.radius, size := h.size, alpha=kappa, out=size) for h in inputs)
        center, radius, offset = self.center(*(h.center for h in inputs)), self.radius(*wider), self.offset()
        return Interval(center, radius if isinstance(offset, float) else radius + kappa * offset)

    def row_error(
        self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic
    ) -> Tensor | None:
        """The rounding of the coefficients and of the constants."""
        terms = self.terms(*(error.shape[1:] for error in errors))
        sizes = (h.size.add_(error) for h, error in zip(inputs, errors, strict=True))
        products = arithmetic.gamma(terms + 8) * self.radius(*sizes)
        return products + arithmetic.of_sum(products) * self.offset()


def broadcast(*shapes: torch.Size) -> torch.Size:
    """The shape in which values of these shapes are combined."""
    shape: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return shape


def fit(A: Tensor, shape: torch.Size) -> Tensor:
    """Rows (B, S, *out) on a value that was broadcast from ``shape``, as rows (B, S, *shape)."""
    if A.shape[2:] == shape:
        return A
    padded = (1,) * (A.dim() - 2 - len(shape)) + tuple(shape)
    spread = [i for i, (size, out) in enumerate(zip(padded, A.shape[2:], strict=True), 2) if size == 1 != out]
    return (A.sum(spread, keepdim=True) if spread else A).reshape(*A.shape[:2], *shape)
