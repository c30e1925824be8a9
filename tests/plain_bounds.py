"""Bounds as plain as possible, every layer unrolled into a dense matrix: the reference of the fast ones."""

import torch
from torch import nn


def dense(layer, shape, dtype):
    """The matrix and vector of an affine layer on flat inputs, and its output shape."""
    size = int(torch.tensor(shape).prod())
    zero = layer(torch.zeros(1, *shape, dtype=dtype))
    basis = torch.eye(size, dtype=dtype).view(size, *shape)
    columns = (layer(basis) - zero).flatten(1)
    return columns.T, zero.flatten(), tuple(zero.shape[1:])


def plain_bounds(network, box, y):
    """(IBP margins, CROWN-IBP margins, fused IBP loss, fused CROWN-IBP loss), one example at a time, all matrices."""
    results = [_one(network, box.lower[i], box.upper[i], int(y[i])) for i in range(len(y))]
    return tuple(torch.stack(column) for column in zip(*results, strict=True))


def _one(network, lower, upper, label):
    shape, lo, up = tuple(lower.shape), lower.flatten(), upper.flatten()
    box, layers = (lo, up), []
    modules = list(network)
    for module in modules[:-1]:
        if isinstance(module, nn.ReLU):
            layers.append(("relu", lo, up))
            lo, up = lo.clamp(min=0), up.clamp(min=0)
        else:
            W, b, shape = dense(module, shape, lo.dtype)
            layers.append(("affine", W, b))
            lo, up = (W.clamp(min=0) @ lo + W.clamp(max=0) @ up + b, W.clamp(min=0) @ up + W.clamp(max=0) @ lo + b)
    W, b, _ = dense(modules[-1], shape, lo.dtype)
    W, b = W - W[label], b - b[label]
    high = W.clamp(min=0) @ up + W.clamp(max=0) @ lo + b
    low = W.clamp(min=0) @ lo + W.clamp(max=0) @ up + b
    others = [k for k in range(len(b)) if k != label]
    crown = _crown(layers, box, W, b)
    fused_ibp = high.logsumexp(0)
    shift = high.max()
    slope = torch.where(
        high > low, ((high - shift).exp() - (low - shift).exp()) / (high - low).clamp(min=1e-12), 0 * low
    )
    intercept = (low - shift).exp() - slope * low
    fused = _crown(layers, box, (slope @ W)[None], (slope @ b + intercept.sum())[None])[0]
    return -high[others], -crown[others], fused_ibp, fused.log() + shift


def _crown(layers, box, A, beta):
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
    lo, up = box
    return A.clamp(min=0) @ up + A.clamp(max=0) @ lo + beta
