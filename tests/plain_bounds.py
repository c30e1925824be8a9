"""Bounds as plain as possible, every layer unrolled into a dense matrix: the reference of the fast ones."""

import torch
from torch import nn

from robust.threat_models import CutBall


def dense(layer, shape, dtype):
    """The matrix and vector of an affine layer on flat inputs, and its output shape."""
    size = int(torch.tensor(shape).prod())
    zero = layer(torch.zeros(1, *shape, dtype=dtype))
    basis = torch.eye(size, dtype=dtype).view(size, *shape)
    columns = (layer(basis) - zero).flatten(1)
    return columns.T, zero.flatten(), tuple(zero.shape[1:])


def plain_bounds(network, box, y):
    """(IBP margins, CROWN-IBP margins, fused IBP loss, fused CROWN-IBP loss), one example at a time, all matrices.

    Over a box, or over a ball: then the layers before the first ReLU are one matrix.
    """
    results = [_one(network, box, i, int(y[i])) for i in range(len(y))]
    return tuple(torch.stack(column) for column in zip(*results, strict=True))


def _highest(box, index):
    """The function from a matrix to the largest value of each of its rows, in the box and in the ball."""
    lo, up = box.lower[index].flatten(), box.upper[index].flatten()

    def highest(A):
        value = A.clamp(min=0) @ up + A.clamp(max=0) @ lo
        if not isinstance(box, CutBall):
            return value
        dual = torch.linalg.vector_norm(A, ord={"l2": 2, "l1": torch.inf}[box.norm], dim=1)
        return torch.minimum(value, A @ box.center[index].flatten() + box.epsilon[index] * dual)

    return highest


def _one(network, box, index, label):
    shape, lo, up = tuple(box.lower.shape[1:]), box.lower[index].flatten(), box.upper[index].flatten()
    highest, layers = _highest(box, index), []
    first = (torch.eye(len(lo), dtype=lo.dtype), torch.zeros_like(lo)) if isinstance(box, CutBall) else None
    modules = list(network)
    for module in modules[:-1]:
        if isinstance(module, nn.ReLU):
            layers.append(("relu", lo, up))
            lo, up, first = lo.clamp(min=0), up.clamp(min=0), None
        else:
            W, b, shape = dense(module, shape, lo.dtype)
            layers.append(("affine", W, b))
            if first is not None:
                first = (W @ first[0], W @ first[1] + b)
                lo, up = first[1] - highest(-first[0]), first[1] + highest(first[0])
                continue
            lo, up = (W.clamp(min=0) @ lo + W.clamp(max=0) @ up + b, W.clamp(min=0) @ up + W.clamp(max=0) @ lo + b)
    W, b, _ = dense(modules[-1], shape, lo.dtype)
    W, b = W - W[label], b - b[label]
    high = W.clamp(min=0) @ up + W.clamp(max=0) @ lo + b
    low = W.clamp(min=0) @ lo + W.clamp(max=0) @ up + b
    others = [k for k in range(len(b)) if k != label]
    crown = _crown(layers, highest, W, b)
    fused_ibp = high.logsumexp(0)
    shift = high.max()
    slope = torch.where(
        high > low, ((high - shift).exp() - (low - shift).exp()) / (high - low).clamp(min=1e-12), 0 * low
    )
    intercept = (low - shift).exp() - slope * low
    fused = _crown(layers, highest, (slope @ W)[None], (slope @ b + intercept.sum())[None])[0]
    return -high[others], -crown[others], fused_ibp, fused.log() + shift


def _crown(layers, highest, A, beta):
    for kind, *values in reversed(layers):
        if kind == "affine":
            W, b = values
            beta, A = beta + A @ b, A @ W
            continue
        lo, up = values
        unstable = (lo < 0) & (up > 0)
        upper_slope = torch.where(unstable, up / torch.where(unstable, up - lo, 1.0), (lo >= 0).to(lo.dtype))
        intercept = torch.where(unstable, -lo * upper_slope, torch.zeros_like(lo))
        lower_slope = (upper_slope > 0.5).to(lo.dtype)
        beta = beta + A.clamp(min=0) @ intercept
        A = A.clamp(min=0) * upper_slope + A.clamp(max=0) * lower_slope
    return highest(A) + beta
