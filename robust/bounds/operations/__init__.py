"""The operations that bounds know, and :func:`register`, which adds one."""

from robust.bounds.operations import activations, linear, maps, norms, pooling, relu, sums  # noqa: F401  (fills the table)
from robust.bounds.operations.activation import Activation
from robust.bounds.operations.base import Affine, Arithmetic, Interval, Operation
from robust.bounds.operations.registry import Operand, UnboundedError, register

__all__ = ["Activation", "Affine", "Arithmetic", "Interval", "Operand", "Operation", "UnboundedError", "register"]
