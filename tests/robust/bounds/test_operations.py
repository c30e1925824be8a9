"""Each operation alone: against plain references, dense grids and brute force; refusals; operations of one's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from robust.bounds import FeedForwardVerifier
from robust.bounds.operations import Activation, Arithmetic, Interval, activations, powers, register, registry
from robust.bounds.operations.pooling import MaxPool
from robust.bounds.operations.relu import ReLU
from robust.errors import UnsupportedLayerError
from robust.threat_models import LinfBall, PixelBox
from tests.plain_bounds import plain_bounds
from tests.random_networks import Lambda

SMOOTH = [
    *(
        activations.GELU(),
        activations.TanhGELU(),
        activations.Hardsigmoid(),
        activations.SiLU(),
        activations.Sigmoid(),
        activations.Tanh(),
        activations.Hardswish(),
    ),
    *(activations.ELU(1.0), activations.ELU(1.7), activations.ELU(0.5), activations.Softplus(2.0)),
    *(activations.LeakyReLU(0.1), activations.Clamp(-0.5, 1.0), activations.Clamp(None, 0.5), activations.Abs()),
    *(powers.Square(), activations.Exp(), powers.Power(-0.5, 1e-3)),
]


def name(activation):
    return type(activation).__name__


def random_intervals(activation, seed, dtype, count=64):
    """Intervals (1, count) from narrow ones to wide ones; of numbers that are not negative for powers."""
    torch.manual_seed(seed)
    scale = 10 ** (4 * torch.rand(1, count, dtype=torch.double) - 2)
    wide = 3.0 if isinstance(activation, activations.Exp) else 300.0
    low, high = (torch.randn(2, 1, count, dtype=torch.double) * scale).clamp(-wide, wide).to(dtype).sort(0).values
    if isinstance(activation, powers.Power):
        low, high = torch.stack([low.abs(), high.abs()]).sort(0).values
    return Interval.between(low, high)


@pytest.mark.parametrize("activation", SMOOTH, ids=name)
@settings(max_examples=5, deadline=None)
@example(135521892)  # SiLU between 10.6 and 240
@given(st.integers(0, 2**31))
def test_lines_touch_an_activation_and_do_not_cross_it(activation, seed):
    h = random_intervals(activation, seed, torch.double)
    grid = h.lower[..., None] + 2 * h.radius[..., None] * torch.linspace(0, 1, 1001, dtype=torch.double)
    special = grid.new_tensor((*activation.kinks, *activation.turns)).expand(*h.center.shape, -1)
    grid = torch.cat([grid, special.clamp(h.lower[..., None], h.upper[..., None])], -1)
    values = activation.value(grid)
    interval = activation.interval(h)
    close = 1e-9 * (1 + values.abs().amax(-1))
    fine = 1e-5 * (1 + (values.amax(-1) - values.amin(-1)))  # a grid misses an extreme by so much
    assert (interval.lower <= values.amin(-1) + close).all()
    assert (interval.upper >= values.amax(-1) - close).all()
    assert (interval.lower >= values.amin(-1) - close - fine).all()
    assert (interval.upper <= values.amax(-1) + close + fine).all()
    slope, below, above = activation.lines(h)
    rest = values - slope[..., None] * grid
    size = 1e-9 * (1 + values.abs().amax(-1) + (slope * h.size).abs())
    assert (below <= rest.amin(-1) + size).all()
    assert (above >= rest.amax(-1) - size).all()
    loose = 1e-3 * (rest.amax(-1) - rest.amin(-1)) + 1e-4 * h.radius * (1 + slope.abs())  # 0.13 of this in 150 seeds
    assert (below >= rest.amin(-1) - size - loose).all()
    assert (above <= rest.amax(-1) + size + loose).all()


@pytest.mark.parametrize("activation", [f for f in SMOOTH if f.lipschitz is not None], ids=name)
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31))
def test_float64_is_within_the_rounding_error_of_float32(activation, seed):
    h = random_intervals(activation, seed, torch.float32)
    zero, arithmetic = (torch.zeros_like(h.radius),), Arithmetic(torch.float32, 1)
    ends = h.center.double() - h.radius.double(), h.center.double() + h.radius.double()
    grid = ends[0][..., None] + (ends[1] - ends[0])[..., None] * torch.linspace(0, 1, 301, dtype=torch.double)
    values, interval = activation.value(grid), activation.interval(h)
    error = activation.error((h,), zero, arithmetic).double()
    assert (values.amax(-1) <= interval.center.double() + interval.radius.double() + error).all()
    assert (values.amin(-1) >= interval.center.double() - interval.radius.double() - error).all()
    slope, below, above = (line.double()[..., None] for line in activation.lines(h))
    error = activation.row_error((h,), zero, arithmetic).double()[..., None]
    assert (values <= slope * grid + above + error).all()
    assert (values >= slope * grid + below - error).all()


@pytest.mark.thorough_but("Sigmoid", "Tanh", "Hardswish", "Power")
@pytest.mark.parametrize("activation", SMOOTH, ids=name)
def test_gradients_of_lines_and_intervals_agree_with_finite_differences(activation):
    center, radius = random_intervals(activation, 3, torch.double, count=12)
    center, radius = 3 * center.tanh(), 0.01 + radius.tanh()
    center = center.abs() + radius if isinstance(activation, powers.Power) else center
    A = torch.randn(1, 3, 12, dtype=torch.double)

    def bounds(A, center, radius):
        (rows,), constant = activation.backward(A, Interval(center, radius))
        return (rows, constant, *activation.interval(Interval(center, radius)))

    inputs = [tensor.requires_grad_() for tensor in (A, center, radius)]
    assert torch.autograd.gradcheck(bounds, inputs, eps=1e-7, atol=1e-4, rtol=1e-4, fast_mode=True)


# the reference joins padding and convolution: a window that holds a pixel twice, as in reflections, has other bounds
AFFINE = {
    **{mode: nn.Conv2d(2, 3, 3, padding=2, padding_mode=mode) for mode in ("zeros", "circular")},
    "same": nn.Conv2d(2, 4, (3, 2), padding="same", groups=2),
    "same, dilated": nn.Conv2d(2, 2, (2, 3), padding="same", dilation=(3, 2)),
    "valid": nn.Conv2d(2, 2, 2, padding="valid", stride=(2, 1)),
    "average": nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False, padding=1),
    "divided": nn.AvgPool2d((2, 3), 1, divisor_override=5),
    "adaptive": nn.AdaptiveAvgPool2d((3, 2)),
    "rows": nn.Linear(7, 3),
    "nearest": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample((4, 9), mode="bilinear"),
    "padded": nn.ZeroPad2d((1, 0, 2, 1)),
    "reflected": nn.ReflectionPad2d(2),
    "batch-norm": nn.BatchNorm2d(2, affine=False),
    "shuffled": nn.Sequential(nn.Conv2d(2, 4, 3), nn.PixelShuffle(2)),
    "constants": Lambda(lambda h: (3 - h) * torch.tensor([[1.0], [-2.0]])[..., None] / 2 - h.new_tensor([0.5] * 7)),
    "constants with a batch": Lambda(lambda h: h.new_ones(len(h), 2, 1, 1) + h),
    "transposed": Lambda(lambda h: h.mT.transpose(1, -1).permute(0, 3, 1, 2).flip(1).roll(2, 3)),
    "parts": Lambda(lambda h: torch.cat([h.split(3, 3)[1], h.unbind(1)[0][:, None, :, :3], h.narrow(3, 0, 3)], 1)),
    "picked": Lambda(lambda h: h[:, [1, 0, 1], 1:4:2][..., h.new_tensor([0, 5]).long()]),
    "copied": Lambda(lambda h: h.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2).repeat(1, 1, 2, 1).squeeze(1)),
    "summed": Lambda(lambda h: h.sum((1, 2), keepdim=True) + h.mean(-1, keepdim=True)),
    "scaled by a weight": Lambda(lambda h: -h.mul(2).div(3).sub(1).add(h, alpha=1)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", AFFINE)
def test_affine_layers_have_the_plain_references_bounds(kind):
    torch.manual_seed(0)
    network = nn.Sequential(AFFINE[kind], nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = torch.rand(2, 2, 5, 7).double(), torch.tensor([0, 2])
    network.eval()(x)
    box = PixelBox(0.1 * torch.rand_like(x)).interval(x)
    ibp, crown, _, fused = plain_bounds(network, box, y)
    torch.testing.assert_close(FeedForwardVerifier("ibp").margins(network, box, y), ibp)
    torch.testing.assert_close(FeedForwardVerifier("crown-ibp").margins(network, box, y), crown)
    torch.testing.assert_close(FeedForwardVerifier().cross_entropy(network, box, y), fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("windows", [(2, 2, 0, 1), (3, 2, 1, 1), (2, 1, 1, 2), (3, 3, 0, 1)])
@pytest.mark.parametrize("ceil", [False, True])
def test_max_pooling_is_exact_where_one_activation_dominates_and_holds_all_corners(windows, ceil):
    torch.manual_seed(0)
    pool = MaxPool(*((size, size) for size in windows), ceil=ceil)
    x = torch.randn(3, 2, 5, 6).double()
    for size in (0.0, 0.05, 1.0):
        h = Interval(x, size * torch.rand_like(x))
        plain = F.max_pool2d(h.upper, *windows, ceil_mode=ceil)
        torch.testing.assert_close(pool.interval(h).upper, plain)
        A = torch.randn(3, 4, *plain.shape[1:]).double()
        (rows,), constant = pool.backward(A, h)
        for _ in range(50):
            point = x + h.radius * (2 * torch.rand_like(x) - 1).sign()
            exact = (A * F.max_pool2d(point, *windows, ceil_mode=ceil)[:, None]).flatten(2).sum(2)
            bound = (rows * point[:, None]).flatten(2).sum(2) + constant
            assert (exact <= bound + 1e-9).all()
        if size == 0:
            torch.testing.assert_close(bound, exact)


@pytest.mark.parametrize("operation", [*SMOOTH, ReLU()], ids=name)
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31))
def test_linear_bounds_are_exact_where_an_operation_does_not_bend(operation, seed):
    h = random_intervals(operation, seed, torch.double)
    straight = ~operation.bends(h)
    A = torch.diag_embed(torch.ones_like(h.center))
    (rows,), above = operation.backward(A, h)
    (negated,), below = operation.backward(-A, h)
    gap = (above + below)[straight], (rows + negated).abs().sum(2)[straight] * h.size[straight]
    assert all((part.abs() <= 1e-9 * (1 + h.size[straight])).all() for part in gap)
    if isinstance(operation, (ReLU, activations.LeakyReLU, activations.Abs)):
        assert torch.equal(straight, (h.lower >= 0) | (h.upper <= 0))
        assert straight.any()


REFUSED = {
    r"add .*give alpha as a factor": lambda h: h.add(h, alpha=2),
    r"sub .*give alpha as a factor": lambda h: h.sub(h, alpha=2),
    r"div .*divides by activations": lambda h: h / (2 + h),
    r"div .*rounds the quotient": lambda h: h.div(2, rounding_mode="floor"),
    r"pad .*another value than 0": lambda h: F.pad(h, (1, 1), value=1.0),
    r"cat .*with a constant": lambda h: torch.cat([h, torch.zeros(len(h), 1, 4, 4)], 1),
    r"max_pool2d_with_indices .*uses the indices": lambda h: F.max_pool2d(h, 2, return_indices=True)[1].float(),
    r"adaptive_max_pool2d .*divide the input": lambda h: F.adaptive_max_pool2d(h, 3),
    r"interpolate .*mode to bilinear": lambda h: F.interpolate(h, scale_factor=2, mode="bicubic"),
    r"clamp .*ends as numbers": lambda h: h.clamp(torch.zeros(4)),
    r"pow .*squares only": lambda h: h**3,
    r"leaky_relu .*slope in \[0, 1\]": lambda h: F.leaky_relu(h, 1.5),
    r"elu .*positive alpha": lambda h: F.elu(h, -1.0),
    r"softplus .*positive beta": lambda h: F.softplus(h, -1),
    r"conv2d .*weights depend on the image": lambda h: F.conv2d(h, h, padding=2).mean(1, keepdim=True),
    r"batch_norm .*set track_running_stats": lambda h: F.batch_norm(h, None, None, training=True),
    r"getitem .*mixes the images": lambda h: h[:1].expand(len(h), -1, -1, -1),
    r"softmax .*no bound for it": lambda h: h.softmax(1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_arguments_without_a_bound_are_named_with_the_remedy(message):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), Lambda(REFUSED[message]), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.rand(2, 1, 4, 4)
    network(x)
    line = r" \(test_operations.py, line \d+: .*"
    expected = message.replace(" .*", line, 1) + ".*; set the verifier to robust.bounds.LirpaVerifier$"
    with pytest.raises(UnsupportedLayerError, match=r"^network layer '1': got [\"']" + expected):
        FeedForwardVerifier().margins(network, LinfBall(0.1).interval(x), torch.tensor([0, 1]))


class Transformer(nn.Module):
    """A small vision transformer, with torch's attention or written-out one."""

    def __init__(self, token, attention):
        super().__init__()
        self.embed, self.token = nn.Conv2d(1, 4, 2, 2), nn.Parameter(torch.zeros(1, 1, 4)) if token else None
        self.attention, self.head = attention, nn.Linear(4, 3)

    def forward(self, x):
        h = self.embed(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            h = torch.cat([self.token.expand(len(h), -1, -1), h], 1)
        h = h + (self.attention(h, h, h)[0] if self.attention else F.scaled_dot_product_attention(h, h, h))
        return self.head(h.mean(1))


@pytest.mark.parametrize(
    ("token", "torchs", "message"),
    [
        (True, False, r"network: got 'cat \(.*, line \d+: h = torch.cat\(.*; it joins activations with a constant"),
        (False, False, r"network: got 'scaled_dot_product_attention \(.*, line \d+: h = h .*; .* has no bound for it"),
        (
            False,
            True,
            r"network layer 'attention': got 'transpose \(.*, line \d+: h = h \+ \(self.attention\(h",
        ),
    ],
)
def test_a_vision_transformer_is_an_error_that_names_operation_and_line(token, torchs, message):
    attention = nn.MultiheadAttention(4, 1, batch_first=True) if torchs else None
    box = LinfBall(0.1).interval(torch.rand(2, 1, 4, 4))
    with pytest.raises(UnsupportedLayerError, match=message):
        FeedForwardVerifier().margins(Transformer(token, attention).eval(), box, torch.tensor([0, 1]))


def test_a_branch_that_the_logits_do_not_need_is_not_bounded():
    network = nn.Sequential(nn.Flatten(), Lambda(lambda h: (h.softmax(1), h)[1]), nn.Linear(4, 2))
    x = torch.rand(2, 1, 2, 2)
    assert FeedForwardVerifier().margins(network, LinfBall(0.1).interval(x), torch.tensor([0, 1])).shape == (2, 1)


class Softsign(Activation):
    """h / (1 + |h|)."""

    kinks, pieces, lipschitz = (0.0,), ((-math.inf, 0.0, 1), (0.0, math.inf, -1)), 1.0

    def value(self, x):
        return x / (1 + x.abs())

    def slope(self, x):
        return 1 / (1 + x.abs()).square()


def test_an_operation_of_ones_own(monkeypatch):
    known = {key: builder for key, builder in registry._BUILDERS.items() if "softsign" not in str(key)}  # of the docs
    monkeypatch.setattr(registry, "_BUILDERS", known)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Softsign(), nn.Linear(8, 3))
    x = torch.rand(30, 1, 2, 2)
    y = network(x).argmax(1)
    with pytest.raises(UnsupportedLayerError, match="Softsign"):
        FeedForwardVerifier().margins(network, LinfBall(0.1).interval(x), y)
    register(F.softsign)(lambda x: Softsign())
    logits = network(LinfBall(0.1).interval(x).lower)
    reached = (logits.gather(1, y[:, None]) - logits).scatter(1, y[:, None], math.inf).amin(1)
    for method in ("ibp", "crown-ibp", "crown"):
        margins = FeedForwardVerifier(method).margins(network, LinfBall(0.1).interval(x), y)
        assert (margins.amin(1) <= reached + 1e-5).all()
    assert FeedForwardVerifier().margin_range(network, LinfBall(0.1).interval(x), y) is not None


def test_a_wrong_operation_of_ones_own_is_found(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    register(nn.Softsign)(lambda module, x: activations.Tanh())
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Softsign(), nn.Linear(8, 3))
    with pytest.raises(UnsupportedLayerError, match=r"layer '2': got 'Softsign\(\)'; .*something else than its bound"):
        FeedForwardVerifier().margins(network, LinfBall(0.1).interval(torch.rand(1, 1, 2, 2)), torch.tensor([0]))


def test_the_reversed_difference_takes_a_constant_on_either_side():
    """Regression: with the constant first, an AttributeError."""
    one, x, y = nn.Parameter(torch.ones(4)), torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])
    for reversed_, plain in (
        (lambda h: torch.rsub(one, h.flatten(1)), lambda h: h.flatten(1) - one),
        (lambda h: torch.rsub(h.flatten(1), one), lambda h: one - h.flatten(1)),
    ):
        head = nn.Linear(4, 3)
        box = LinfBall(0.1).interval(x)
        expected = FeedForwardVerifier().margins(nn.Sequential(Lambda(plain), head), box, y)
        torch.testing.assert_close(
            FeedForwardVerifier().margins(nn.Sequential(Lambda(reversed_), head), box, y), expected
        )
