"""Balls of the l2 and l1 norm at the input, and their intervals after the first layer, by dual norms."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.bounds.operations.base import Affine, Interval, Operation
from robust.threat_models import CutBall, Norm


class BallInterval(Interval):
    """The points of a box with ``h = point + scale * u``, ``|u|_p <= epsilon``: a ball, after a scale of its pixels.

    As an interval it is its box. Source: dual norms, as in Zhang et al. 2018 (CROWN), Sec. 3.2.

    >>> x = torch.full((1, 1, 1, 2), 0.5)
    >>> h = BallInterval.of(CutBall.around(x, torch.tensor([0.25]), "l2"))
    >>> h.highest(torch.tensor([3.0, 4.0]).view(1, 1, 1, 1, 2))  # 3.5, and 5 / 4 instead of 7 / 4
    tensor([[4.7500]])

    Attributes:
        point: the ball's center, (B, *shape).
        epsilon: radius (B,).
        scale: factor of each pixel, 0 or above, (1, *shape).
        norm: norm of the ball, ``l2`` or ``l1``.
    """

    _point: Tensor
    epsilon: Tensor
    scale: Tensor
    norm: Norm

    @classmethod
    def build(cls, box: Interval, point: Tensor, epsilon: Tensor, scale: Tensor, norm: Norm) -> BallInterval:
        """The ball within a box."""
        ball = cls(*box)
        ball._point, ball.epsilon, ball.scale, ball.norm = point, epsilon, scale, norm
        return ball

    @classmethod
    def of(cls, ball: CutBall) -> BallInterval:
        """The interval of a ball of images, without a scale."""
        scale = torch.ones_like(ball.center[:1])
        return cls.build(Interval.between(ball.lower, ball.upper), ball.center, ball.epsilon, scale, ball.norm)

    @property
    def point(self) -> Tensor:
        """The ball's center."""
        return self._point

    @property
    def rounding(self) -> float:
        """8: where dual norms give less than the box, they are below 2 |W| size, and their sums have as many terms."""
        return 8.0

    def highest(self, A: Tensor) -> Tensor:
        """The smaller one of the largest values in the ball and in the box, (B, S), of rows (B, S, *shape)."""
        rows = A.flatten(2)
        at_point = (rows @ self.point.flatten(1)[..., None]).squeeze(-1)
        reach = self.epsilon[:, None] * _dual_norm(rows * self.scale.flatten(1), self.norm)
        return torch.minimum(super().highest(A), at_point + reach)

    def through(self, operation: Operation, interval: Interval) -> Interval:
        """The interval of an operation's result, tightened by dual norms if the operation is affine and has them.

        Args:
            operation: operation whose input is this ball.
            interval: interval of its result, from the box.
        """
        if not isinstance(operation, Affine):
            return interval
        if operation.diagonal:
            scale = operation.radius(self.scale)
            return self.build(interval, operation.center(self.point), self.epsilon, scale, self.norm)
        norms = operation.row_norms(self.scale, self.norm)
        if norms is None:
            return interval
        center = operation.center(self.point)
        reach = self.epsilon.view(-1, *[1] * (center.dim() - 1)) * norms
        upper = torch.minimum(interval.upper, center + reach)
        # rounding may put the lower end above the upper one
        return Interval.between(torch.minimum(torch.maximum(interval.lower, center - reach), upper), upper)

    def select(self, images: Tensor) -> BallInterval:
        """Select the balls of the images (b,)."""
        return self.build(super().select(images), self.point[images], self.epsilon[images], self.scale, self.norm)


def _dual_norm(rows: Tensor, norm: Norm) -> Tensor:
    """The dual norm (B, S) of rows (B, S, n): l2 for l2, the largest absolute entry for l1."""
    if norm == "l1":
        return rows.abs().amax(-1)
    # first over the largest entry: the squares of small coefficients are 0 in float32
    largest = rows.detach().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    norms: Tensor = torch.linalg.vector_norm(rows / largest, dim=-1)
    return norms * largest.squeeze(-1)
