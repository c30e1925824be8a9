"""Random networks that are graphs: residual, joined, gated; every activation, pooling and normalisation, odd sizes."""

import random

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {
    "relu": F.relu,
    "leaky": lambda h: F.leaky_relu(h, 0.2),
    "relu6": lambda h: F.relu6(3 * h),
    "clamp": lambda h: h.clamp(-0.3, 0.4),
    "hardtanh": F.hardtanh,
    "elu": F.elu,
    "wide elu": lambda h: F.elu(h, 1.5),
    "gelu": lambda h: F.gelu(3 * h),
    "tanh gelu": lambda h: F.gelu(3 * h, approximate="tanh"),
    "hardsigmoid": lambda h: F.hardsigmoid(6 * h),
    "silu": lambda h: F.silu(3 * h),
    "sigmoid": lambda h: torch.sigmoid(4 * h),
    "tanh": lambda h: (2 * h).tanh(),
    "hardswish": lambda h: F.hardswish(4 * h),
    "softplus": lambda h: F.softplus(h, 2),
    "abs": torch.abs,
    "square": torch.square,
}
PADDINGS = ("zeros", "reflect", "replicate", "circular")


class RandomGraph(nn.Module):
    """A classifier of odd, non-square images, made of random blocks.

    Args:
        seed: of everything.
        activations: names in ACTIVATIONS to draw from.
        kinds: names of the blocks to draw from.
        normed: draw normalisation layers.
    """

    def __init__(self, seed, activations=tuple(ACTIVATIONS), kinds=None, *, normed=True):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.shape = draw.choice([(1, 5, 7), (2, 4, 5), (3, 5, 4)])
        self.kinds = [draw.choice(kinds or tuple(BLOCKS)) for _ in range(draw.randint(1, 3))]
        self.activations = [draw.choice(activations) for _ in range(8)]
        self.stem = nn.Conv2d(self.shape[0], 4, 3, padding=1, padding_mode=draw.choice(PADDINGS))
        self.convs = nn.ModuleList(self._conv(draw, i) for i in range(2 * len(self.kinds)))
        norms = [nn.Identity, lambda: nn.BatchNorm2d(4)] + normed * [lambda: nn.GroupNorm(2, 4)]
        self.norms = nn.ModuleList(draw.choice(norms)() for _ in self.kinds)
        self.gate = nn.Linear(4, 4)
        self.head = draw.choice(["flatten", "mean", "rows"])
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3), module.running_var.uniform_(0.5, 1.5)
        self.last = nn.LazyLinear(draw.choice([2, 3, 5]))
        self.eval()(torch.rand(2, *self.shape))

    def _conv(self, draw, i):
        groups, dilation = draw.choice([1, 1, 2]), draw.choice([1, 1, 2])
        kernel, padding = draw.choice([(3, "same"), (2, "same"), (3, dilation)])
        return nn.Conv2d(4, 4, kernel, padding=padding, groups=groups, dilation=dilation)

    def forward(self, x):
        activation = [ACTIVATIONS[name] for name in self.activations]
        h = activation[0](self.stem(x))
        for i, kind in enumerate(self.kinds):
            one, other = self.convs[2 * i : 2 * i + 2]
            h = BLOCKS[kind](self, self.norms[i](h), one, other, activation[i + 1], activation[i + 4])
        if self.head == "mean":
            h = h.mean((2, 3))
        elif self.head == "rows":
            h = torch.flatten(h.permute(0, 2, 3, 1)[..., :3], 1)
        return self.last(h.flatten(1))


def _residual(net, h, one, other, f, g):
    return g(h + other(f(one(h))))


def _difference(net, h, one, other, f, g):
    return f(one(h)) - 0.5 * g(other(h)) + 1


def _joined(net, h, one, other, f, g):
    halves = f(one(h)).chunk(2, 1)
    return torch.cat([halves[1], g(other(h))[:, 1:3]], 1)


def _gated(net, h, one, other, f, g):
    gate = torch.sigmoid(net.gate(f(one(h)).mean((2, 3))))
    return h * gate[:, :, None, None]


def _pooled(net, h, one, other, f, g):
    h = F.max_pool2d(f(one(h)), 3, stride=2, padding=1)
    return F.avg_pool2d(h, 2, stride=1, padding=1)


def _ceiled(net, h, one, other, f, g):
    h = F.max_pool2d(f(one(h)), 2, ceil_mode=True)
    return F.interpolate(F.adaptive_avg_pool2d(h, (3, 2)), scale_factor=2) / 2


def _stacked(net, h, one, other, f, g):
    h = torch.stack([f(one(h)), g(h)], 1).flatten(1, 2)
    return -h.unflatten(1, (4, 2)).transpose(1, 2)[:, 0]


def _layered(net, h, one, other, f, g):
    return F.layer_norm(f(one(h)), h.shape[1:], eps=0.1)


BLOCKS = {"residual": _residual, "difference": _difference, "joined": _joined, "gated": _gated}
BLOCKS |= {"pooled": _pooled, "ceiled": _ceiled, "stacked": _stacked, "layered": _layered}
UNNORMED = tuple(kind for kind in BLOCKS if kind != "layered")


def assert_not_crossed(bound, reached, context=""):
    """No bound is above what points reach, (B, K-1), but for rounding errors of the largest numbers that bounds meet.

    Squares and group normalisation raise them to 1e14, where float32 has no digit of a small margin left, and beyond
    its range: a bound that is NaN certifies nothing.
    """
    precision = torch.finfo(bound.dtype).eps
    tolerance = 1e3 * precision * (1 + reached.abs()) + 100 * precision * bound.abs().amax()
    assert not (bound > reached + tolerance).any(), context
