"""The activations of networks; where a function turns and bends is to be known to float64's precision."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.bounds.operations.activation import Activation
from robust.bounds.operations.base import Arithmetic, Interval
from robust.bounds.operations.piecewise import Abs, Clamp, Hardsigmoid, LeakyReLU
from robust.bounds.operations.powers import Square
from robust.bounds.operations.registry import Operand, UnboundedError, register


def _log(slope: Tensor) -> Tensor:
    return slope.clamp(min=torch.finfo(slope.dtype).tiny).log()


class ELU(Activation):
    """h where it is positive, else alpha (exp(h) - 1).

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (ELU(1.0).interval(h).lower, ELU(1.0).interval(h).upper)]
    [-0.632, 3.0]
    >>> [round(part.item(), 3) for part in ELU(1.0).lines(h)]  # slope, offsets of the lines
    [0.908, -0.004, 0.276]
    """

    kinks, pieces = (0.0,), ((-math.inf, 0.0, 1),)

    def __init__(self, alpha: float) -> None:
        if alpha <= 0:
            raise UnboundedError("give a positive alpha")
        self.alpha, self.lipschitz = alpha, max(alpha, 1.0)

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return F.elu(x, self.alpha)

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative; at 0 that from the left."""
        return torch.where(x > 0, 1.0, self.alpha * x.clamp(max=0).exp())

    def touch(self, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The point where the function has that slope."""
        return _log(slope / self.alpha)


class Sigmoid(Activation):
    """1 / (1 + exp(-h)).

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (Sigmoid().interval(h).lower, Sigmoid().interval(h).upper)]
    [0.269, 0.953]
    >>> [round(part.item(), 3) for part in Sigmoid().lines(h)]  # slope, offsets of the lines
    [0.171, 0.44, 0.564]
    """

    pieces, lipschitz = ((-math.inf, 0.0, 1), (0.0, math.inf, -1)), 0.25

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return x.sigmoid()

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return x.sigmoid() * (-x).sigmoid()

    def touch(self, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The point where the function has that slope."""
        point = 2 * ((1 + (1 - 4 * slope).clamp(min=0).sqrt()) / 2).log() - _log(slope)
        return torch.where(right > 0, point, -point)


class Tanh(Activation):
    """The hyperbolic tangent.

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (Tanh().interval(h).lower, Tanh().interval(h).upper)]
    [-0.762, 0.995]
    >>> [round(part.item(), 3) for part in Tanh().lines(h)]  # slope, offsets of the lines
    [0.439, -0.323, 0.323]
    """

    pieces, lipschitz = ((-math.inf, 0.0, 1), (0.0, math.inf, -1)), 1.0

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return x.tanh()

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return 4 * (2 * x).sigmoid() * (-2 * x).sigmoid()

    def touch(self, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The point where the function has that slope."""
        point = (1 + (1 - slope).clamp(min=0).sqrt()).log() - 0.5 * _log(slope)
        return torch.where(right > 0, point, -point)


class GELU(Activation):
    """h times the normal distribution function of h.

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (GELU().interval(h).lower, GELU().interval(h).upper)]
    [-0.17, 2.996]
    >>> [round(part.item(), 3) for part in GELU().lines(h)]  # slope, offsets of the lines
    [0.789, -0.053, 0.63]
    """

    pieces = ((-math.inf, -math.sqrt(2), -1), (-math.sqrt(2), math.sqrt(2), 1), (math.sqrt(2), math.inf, -1))
    turns, lipschitz, reach = (-0.7517915246935645,), 1.13, 8.0

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return F.gelu(x)

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        density = (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)
        below: Tensor = torch.special.ndtr(x)
        return below + x * density


class TanhGELU(Activation):
    """GELU with the tanh that approximates the normal distribution function.

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (TanhGELU().interval(h).lower, TanhGELU().interval(h).upper)]
    [-0.17, 2.996]
    >>> [round(part.item(), 3) for part in TanhGELU().lines(h)]  # slope, offsets of the lines
    [0.789, -0.053, 0.63]
    """

    bend = 1.418504008790828
    pieces = ((-math.inf, -bend, -1), (-bend, bend, 1), (bend, math.inf, -1))
    turns, lipschitz, reach = (-0.752461422071016,), 1.13, 8.0

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return F.gelu(x, approximate="tanh")

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative; beyond 16 it is 0 or 1 but for rounding."""
        x = x.clamp(-16, 16)
        root = math.sqrt(2 / math.pi)
        twice = 2 * root * (x + 0.044715 * x**3)  # the tanh is 2 sigmoid(twice) - 1
        below = twice.sigmoid()
        return below + 2 * x * below * (-twice).sigmoid() * root * (1 + 3 * 0.044715 * x.square())


class SiLU(Activation):
    """h times the sigmoid of h.

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (SiLU().interval(h).lower, SiLU().interval(h).upper)]
    [-0.269, 2.858]
    >>> [round(part.item(), 3) for part in SiLU().lines(h)]  # slope, offsets of the lines
    [0.782, -0.082, 0.513]
    """

    bend = 2.399357280515468  # h tanh(h / 2) is 2
    pieces = ((-math.inf, -bend, -1), (-bend, bend, 1), (bend, math.inf, -1))
    turns, lipschitz, reach = (-1.2784645427610738,), 1.1, 40.0  # its slope is not yet 1 at 16, in float64

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return F.silu(x)

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return x.sigmoid() * (1 + x * (-x).sigmoid())


class Hardswish(Activation):
    """h min(max(h + 3, 0), 6) / 6.

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (Hardswish().interval(h).lower, Hardswish().interval(h).upper)]
    [-0.333, 3.0]
    >>> [round(part.item(), 3) for part in Hardswish().lines(h)]  # slope, offsets of the lines
    [0.833, -0.167, 0.5]
    """

    kinks, pieces, turns, lipschitz = (-3.0, 3.0), ((-3.0, 3.0, 1),), (-1.5,), 1.5

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return F.hardswish(x)

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative; at the kinks that of the parabola."""
        return torch.where(x.abs() <= 3, x / 3 + 0.5, (x > 0).to(x.dtype))


class Softplus(Activation):
    """log(1 + exp(beta h)) / beta.

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (Softplus(1.0).interval(h).lower, Softplus(1.0).interval(h).upper)]
    [0.313, 3.049]
    >>> [round(part.item(), 3) for part in Softplus(1.0).lines(h)]  # slope, offsets of the lines
    [0.684, 0.624, 0.997]
    """

    pieces, lipschitz = ((-math.inf, math.inf, 1),), 1.0

    def __init__(self, beta: float, threshold: float = 20.0) -> None:
        if beta <= 0:
            raise UnboundedError("give a positive beta")
        if threshold < 20:
            raise UnboundedError("give a threshold of at least 20: PyTorch's function falls at a lower one")
        self.beta, self._fall = beta, math.log1p(math.exp(-threshold)) / beta  # PyTorch gives h above the threshold

    def error(self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic) -> Tensor | None:
        """As of every activation, and the fall of PyTorch's function at its threshold."""
        error = super().error(inputs, errors, arithmetic)
        return None if error is None else error + self._fall

    def row_error(
        self, inputs: tuple[Interval, ...], errors: tuple[Tensor, ...], arithmetic: Arithmetic
    ) -> Tensor | None:
        """As of every activation, and the fall."""
        error = super().row_error(inputs, errors, arithmetic)
        return None if error is None else error + self._fall

    def value(self, x: Tensor) -> Tensor:
        """f, without PyTorch's threshold."""
        scaled = torch.logaddexp(self.beta * x, torch.zeros_like(x))
        return scaled / self.beta

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return (self.beta * x).sigmoid()

    def touch(self, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The point where the function has that slope."""
        return (_log(slope) - _log(1 - slope)) / self.beta


class Exp(Activation):
    """exp(h).

    >>> h = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))  # [-1, 3]
    >>> [round(end.item(), 3) for end in (Exp().interval(h).lower, Exp().interval(h).upper)]
    [0.368, 20.086]
    >>> [round(part.item(), 3) for part in Exp().lines(h)]  # slope, offsets of the lines
    [4.929, -2.934, 5.297]
    """

    pieces = ((-math.inf, math.inf, 1),)

    def value(self, x: Tensor) -> Tensor:
        """The function."""
        return x.exp()

    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""
        return x.exp()

    def touch(self, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The point where the function has that slope."""
        return _log(slope)


for _name, _kind in {
    "silu": SiLU,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "hardswish": Hardswish,
    "hardsigmoid": Hardsigmoid,
}.items():
    register(_name)(lambda x, inplace=False, kind=_kind: kind())
for _name, _kind in {"abs": Abs, "absolute": Abs, "square": Square, "exp": Exp}.items():
    register(_name)(lambda x, kind=_kind: kind())


@register("gelu")
def _gelu(x: Operand, approximate: str = "none") -> GELU | TanhGELU:
    return GELU() if approximate == "none" else TanhGELU()


@register("leaky_relu")
def _leaky_relu(x: Operand, negative_slope: float = 0.01, inplace: bool = False) -> LeakyReLU:
    return LeakyReLU(negative_slope)


@register("elu")
def _elu(x: Operand, alpha: float = 1.0, inplace: bool = False) -> ELU:
    return ELU(alpha)


@register("softplus")
def _softplus(x: Operand, beta: float = 1, threshold: float = 20) -> Softplus:
    return Softplus(beta, threshold)


@register("relu6")
def _relu6(x: Operand, inplace: bool = False) -> Clamp:
    return Clamp(0.0, 6.0)


@register("hardtanh")
def _hardtanh(x: Operand, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Clamp:
    return Clamp(min_val, max_val)


@register("clamp", "clip")
def _clamp(x: Operand, min: Any = None, max: Any = None) -> Clamp:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        raise UnboundedError("give the ends as numbers")
    return Clamp(min, max)


@register("pow")
def _pow(x: Operand, exponent: Any) -> Square:
    if exponent != 2:
        raise UnboundedError("it has bounds of squares only")
    return Square()
