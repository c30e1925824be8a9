"""Bounds over l2 and l1 balls: equal to plain ones in float64, exact on linear networks, never violated."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, LirpaVerifier, _lirpa_shims, certify
from robust.bounds.operations.linear import Convolution, Linear, PaddedConvolution, _conv2d
from robust.bounds.operations.registry import Operand
from robust.bounds.verifier import other_classes
from robust.errors import SettingError
from robust.networks import Normalize
from robust.threat_models import CutBall, L1Ball, L2Ball, ball
from tests.lirpa_cases import needs_lirpa
from tests.plain_bounds import dense, plain_bounds
from tests.random_graphs import ACTIVATIONS, UNNORMED, RandomGraph, assert_not_crossed
from tests.random_networks import networks_for_auto_lirpa, random_case

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
METHODS = ("ibp", "crown-ibp", "tightest", "crown")
NORMS = ("l2", "l1")
ORDERS = {"l2": 2, "l1": torch.inf}  # of the dual norm
norms, sizes = st.sampled_from(NORMS), st.sampled_from([1e-3, 0.1, 1.0, 5.0])


def margins_at(network, points, y):
    """z_y - z_k of points (N, B, C, H, W), (N, B, K-1)."""
    with torch.no_grad():
        logits = network(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    labels, others = y.expand(len(points), -1)[..., None], other_classes(y, logits.shape[2])
    return logits.gather(2, labels) - logits.gather(2, others.expand(len(points), -1, -1))


def points_of(threat_model, network, x, y):
    """Random, extreme and attacked images of a ball, (N, B, C, H, W)."""
    directions = torch.randn(30, *x.shape, dtype=x.dtype)
    far = [threat_model.project((x + 100 * direction).clamp(-9, 9), x) for direction in directions]
    sparse = [threat_model.project((x + d * (d.abs() > 1.5)).clamp(-9, 9), x) for d in 5 * directions]
    return torch.stack([*far, *sparse, threat_model.sample(x), PGD(steps=5)(network, threat_model, x, y)])


@settings(max_examples=25, deadline=None)
@given(networks_for_auto_lirpa, norms, sizes)
def test_bounds_equal_plain_ones_in_float64(network, norm, size):
    network = network.double()
    x, y, _ = random_case(network, 0.1)
    region = ball(norm, size).region(x.double())
    expected = plain_bounds(network, region, y)
    verifier = FeedForwardVerifier()
    given_ = (
        *(FeedForwardVerifier(method).margins(network, region, y) for method in METHODS[:2]),
        *(verifier.cross_entropy(network, region, y, weight) for weight in (0.0, 1.0)),
    )
    for value, plain in zip(given_, expected, strict=True):
        torch.testing.assert_close(value, plain, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_the_certified_radius_of_a_linear_network_is_margin_over_dual_norm(norm, method):
    torch.manual_seed(0)
    layers = [Normalize([0.4, 0.5], [0.2, 0.3]), nn.Flatten(), nn.Linear(24, 3)]
    network, x = nn.Sequential(*layers), 0.4 + 0.2 * torch.rand(5, 2, 3, 4)  # the cube does not cut the balls
    y, verifier = network(x).argmax(1), FeedForwardVerifier(method)
    matrix, _, _ = dense(network.double(), (2, 3, 4), torch.float64)
    margins, network = margins_at(network, x.double()[None], y)[0], network.float()
    rows = matrix[y][:, None] - matrix[other_classes(y, 3)]
    radii = (margins / torch.linalg.vector_norm(rows, ord=ORDERS[norm], dim=2)).amin(1)
    assert (radii < 0.4).all()
    for i, radius in enumerate(radii.tolist()):
        verdicts = [
            bool(
                certify(verifier, network, ball(norm, factor * radius), x[i : i + 1], y[i : i + 1], margins=m).certified
            )
            for factor in (0.9999, 1.0001)
            for m in (True, False)
        ]
        assert verdicts == [True, True, False, False]


@pytest.mark.thorough
def test_no_certificate_is_false_at_the_last_epsilon_that_is_certified():
    """In exact arithmetic: the squared distance to the decision boundary, as a fraction."""
    naive_violations = 0
    for seed in range(12):
        torch.manual_seed(seed)
        network, x = nn.Sequential(nn.Flatten(), nn.Linear(30, 2)), 0.3 + 0.4 * torch.rand(1, 1, 5, 6)
        y = network(x).argmax(1)
        label, norm = int(y), NORMS[seed % 2]
        rows, bias = ([[Fraction(w) for w in row] for row in network[1].weight.tolist()], network[1].bias.tolist())
        row = [a - b for a, b in zip(rows[label], rows[1 - label], strict=True)]
        margin = sum(w * Fraction(v) for w, v in zip(row, x.flatten().tolist(), strict=True))
        margin += Fraction(bias[label]) - Fraction(bias[1 - label])
        square = sum(w * w for w in row) if norm == "l2" else max(abs(w) for w in row) ** 2

        def last(safe, network=network, x=x, y=y, norm=norm):
            low, high = 0.0, 1.0
            for _ in range(45):
                middle = 0.5 * (low + high)
                verdict = certify(FeedForwardVerifier(), network, ball(norm, middle), x, y, rounding_safe=safe)
                low, high = (middle, high) if bool(verdict.certified) else (low, middle)
            return low

        naive, safe = last(False), last(True)
        naive_violations += Fraction(naive) ** 2 * square >= margin**2
        assert Fraction(safe) ** 2 * square < margin**2
        assert safe >= naive * (1 - 1e-6)  # nothing that is certain is given up
    assert naive_violations > 1  # what the test is about


def assert_sound(seed, norm, size):
    network = RandomGraph(seed)
    x, y = torch.rand(2, *network.shape), torch.randint(network.last.out_features, (2,))
    threat_model = ball(norm, size)
    points, region = points_of(threat_model, network, x, y), threat_model.region(x)
    reached = margins_at(network, points, y).amin(0)
    with torch.no_grad():
        for method in METHODS:
            assert_not_crossed(FeedForwardVerifier(method).margins(network, region, y), reached, method)
        point = FeedForwardVerifier("tightest").margins(network, ball(norm, 0.0).region(x), y)
        torch.testing.assert_close(point, margins_at(network, x[None], y)[0], rtol=1e-3, atol=1e-3)
        for weight in (0.0, 1.0):
            bound = FeedForwardVerifier().cross_entropy(network, region, y, weight)
            losses = F.cross_entropy(network(points.flatten(0, 1)), y.repeat(len(points)), reduction="none")
            assert not (losses.view(len(points), -1).amax(0) > bound + 1e-4 * (1 + bound.abs())).any()
        precise, regions = network.double(), (threat_model.interval(x.double()), threat_model.region(x.double()))
        reached = margins_at(precise, points.double(), y).amin(0)
        for method in METHODS:
            assert_not_crossed(FeedForwardVerifier(method).margins(precise, regions[1], y), reached, method)
        over_box, over_ball = (FeedForwardVerifier().margins(precise, each, y) for each in regions)
        assert (over_ball >= over_box - 1e-9 * (1e3 + over_box.abs())).all()  # linear bounds are not monotone


@pytest.mark.thorough
@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**31), norms, sizes)
@example(12485, "l2", 0.1)  # whose intervals reach 1e14
@example(2579794, "l2", 0.1)  # 1e58, which float32 does not hold
def test_no_point_of_a_ball_crosses_a_bound_of_a_random_graph(seed, norm, size):
    assert_sound(seed, norm, size)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), norms, sizes)
def test_no_point_of_a_ball_crosses_a_bound_of_300_random_graphs(seed, norm, size):
    assert_sound(seed, norm, size)


def assert_range_holds(seed, norm, size, method):
    activations = tuple(name for name in ACTIVATIONS if name != "square")
    network = RandomGraph(seed, kinds=UNNORMED, activations=activations, normed=False)
    x, y = torch.rand(2, *network.shape), torch.randint(network.last.out_features, (2,))
    region, precise = ball(norm, size).region(x), ball(norm, size).region(x.double())
    low, high = FeedForwardVerifier(method).margin_range(network, region, y)
    network = network.double()
    if method == "ibp":  # slopes of linear bounds may differ between precisions
        exact = FeedForwardVerifier(method).margins(network, precise, y)
        assert (low.double() <= exact).all()
        assert (exact <= high.double()).all()
    points = points_of(ball(norm, size), network, x.double(), y)
    assert (low.double() <= margins_at(network, points, y).amin(0)).all()


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31), norms, sizes, st.sampled_from(METHODS[:3]))
def test_the_range_of_a_random_graph_holds_what_float64_gives(seed, norm, size, method):
    assert_range_holds(seed, norm, size, method)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), norms, sizes, st.sampled_from(METHODS[:3]))
def test_the_range_of_300_random_graphs_holds_what_float64_gives(seed, norm, size, method):
    assert_range_holds(seed, norm, size, method)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize("norm", NORMS)
def test_bounds_do_not_depend_on_the_scale_of_activations(norm, factor):
    """Weights whose squares are out of float32's range."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3))
    x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    region = ball(norm, 0.3).region(x)
    plain = FeedForwardVerifier("tightest").margins(network, region, y)
    with torch.no_grad():
        network[0].weight.mul_(factor), network[0].bias.mul_(factor), network[3].weight.div_(factor)
    other = FeedForwardVerifier("tightest").margins(network, region, y)
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.data(), norms)
def test_norms_of_rows_equal_those_of_the_matrix(data, norm):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**31)))
    groups = draw(st.sampled_from([1, 2]))
    weight = torch.randn(4, 2 // groups, draw(st.integers(1, 3)), draw(st.integers(1, 3)), dtype=torch.float64)
    options = {"stride": draw(st.sampled_from([1, 2, (2, 1)])), "padding": draw(st.sampled_from([0, 1, (1, 0)]))}
    options |= {"dilation": draw(st.sampled_from([1, 2])), "groups": groups}
    if draw(st.booleans()):
        options |= {"stride": 1, "padding": "same"}
    shape, scale = torch.Size((2, 6, 7)), torch.rand(1, 2, 6, 7, dtype=torch.float64)
    operation = _conv2d(Operand(shape, shape), weight, None, **options)
    assert isinstance(operation, (Convolution, PaddedConvolution))
    matrix, _, out = dense(lambda h: F.conv2d(h, weight, None, **options), shape, torch.float64)
    expected = torch.linalg.vector_norm(matrix * scale.flatten(), ord=ORDERS[norm], dim=1).view(1, *out)
    torch.testing.assert_close(operation.row_norms(scale, norm), expected)
    matrix = torch.randn(5, 7, dtype=torch.float64)
    expected = torch.linalg.vector_norm(matrix * scale[..., None, :], ord=ORDERS[norm], dim=-1)
    torch.testing.assert_close(Linear(matrix, None).row_norms(scale, norm), expected)


@pytest.mark.parametrize("layer", [nn.ZeroPad2d((1, 0, 2, 1)), nn.ReflectionPad2d(1), nn.AvgPool2d(2), nn.Tanh()])
@pytest.mark.parametrize("norm", NORMS)
def test_layers_before_the_first_weights_are_followed_or_leave_the_box(layer, norm):
    torch.manual_seed(0)
    network = nn.Sequential(layer, nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    x, y = torch.rand(3, 1, 6, 6), network(torch.rand(3, 1, 6, 6)).argmax(1)
    threat_model = ball(norm, 0.2)
    bound, box = (
        FeedForwardVerifier().margins(network, region, y)
        for region in (threat_model.region(x), threat_model.interval(x))
    )
    assert (bound <= margins_at(network, points_of(threat_model, network, x, y), y).amin(0)).all()
    if isinstance(layer, nn.ZeroPad2d):
        assert (bound > box + 1e-3).all()
    else:
        torch.testing.assert_close(bound, box)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("crown_weight", [0.0, 1.0])
def test_gradients_to_weights_and_epsilon_agree_with_finite_differences(norm, crown_weight):
    torch.manual_seed(1)
    norm_layer = Normalize([0.4], [0.3])
    layers = [norm_layer, nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(90, 3)]
    network, x, y = nn.Sequential(*layers).double(), torch.rand(2, 1, 5, 6).double(), torch.tensor([0, 2])
    epsilon = torch.tensor([0.1, 0.3], dtype=torch.float64, requires_grad=True)
    inputs = [epsilon, *network.parameters()]

    def loss():
        region = CutBall.around(x, epsilon, norm)
        return FeedForwardVerifier().cross_entropy(network, region, y, crown_weight).sum()

    gradients = torch.autograd.grad(loss(), inputs)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        direction, values = torch.randn_like(tensor), []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                tensor.add_(step * direction)
                values.append(loss())
                tensor.sub_(step * direction)
        torch.testing.assert_close((gradient * direction).sum(), (values[0] - values[1]) / 2e-6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_finite_where_weights_are_zero(norm):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    with torch.no_grad():
        network[0].weight[0].zero_(), network[3].weight.zero_()
    y = torch.zeros(2, dtype=torch.long)
    for weight in (0.0, 1.0):
        region = ball(norm, 0.1).region(torch.rand(2, 1, 6, 6))
        loss = FeedForwardVerifier().cross_entropy(network, region, y, weight).sum()
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(network.parameters())))


@needs_lirpa
@pytest.mark.parametrize("norm", NORMS)
def test_bounds_equal_those_of_auto_lirpa(norm):
    """Of balls that the cube does not cut, which auto_LiRPA does not know; its IBP of convolutions is for l2."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, 2), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)]
    network, x = nn.Sequential(*layers).eval(), 0.4 + 0.2 * torch.rand(3, 1, 6, 6)
    y, epsilon = torch.tensor([0, 1, 2]), 0.2
    lirpa = _lirpa_shims.load()
    with _lirpa_shims.tracing():
        module = lirpa.BoundedModule(network, x, bound_opts={"param": {"auto_requires_grad": False}})
    with np.errstate(divide="ignore"):  # the dual norm of l1
        center = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(norm=float(norm[1]), eps=epsilon))
    eye = torch.eye(3)
    rows = eye[y][:, None] - eye[other_classes(y, 3)]
    methods = ("ibp", "crown-ibp", "crown") if norm == "l2" else ("crown",)
    for method in methods:
        theirs, _ = module.compute_bounds(x=(center,), C=rows, method=method, bound_upper=False)
        ours = FeedForwardVerifier(method).margins(network, ball(norm, epsilon).region(x), y)
        if method == "crown":  # ours are the tighter ones with intervals
            assert (ours >= theirs - 1e-5).all()
            assert (ours - theirs).abs().median() < 1e-4
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_images_go_through_in_parts():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    x = torch.rand(7, 1, 6, 6)
    y = network(x).argmax(1)
    region = L2Ball(0.1).region(x)
    for method in METHODS:
        whole, parts = FeedForwardVerifier(method), FeedForwardVerifier(method, memory=5000)
        with torch.no_grad():
            torch.testing.assert_close(parts.margins(network, region, y), whole.margins(network, region, y))
        assert torch.equal(parts.decide(network, region, y).certified, whole.decide(network, region, y).certified)


def test_a_certified_image_is_no_worse_for_being_near_the_cubes_faces():
    """The box's midpoint is not in the ball where many pixels are 0 or 1: it must not refuse an image."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(100, 2))
    with torch.no_grad():
        network[1].weight[0].fill_(-1.0), network[1].weight[1].fill_(0.0)
        network[1].bias.copy_(torch.tensor([6.0, 0.0]))
    x, y = torch.zeros(1, 1, 10, 10), torch.tensor([0])  # margin 6 - 10 epsilon, at the midpoint 6 - 50 epsilon
    for method in METHODS:
        verdicts = certify(FeedForwardVerifier(method), network, L2Ball(0.5), x, y, margins=False)
        assert verdicts.certified.all(), method


def test_errors_name_what_cannot_be_bounded():
    network, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    region = L1Ball(0.1).region(x)
    for bound in (LirpaVerifier().margins, LirpaVerifier().cross_entropy):
        remedy = "box: got 'l1 ball'; LirpaVerifier bounds boxes alone; set the verifier to robust.bounds.FeedForward"
        with pytest.raises(SettingError, match=remedy):
            bound(network, region, y)
    linf = CutBall.around(x, torch.full((len(x),), 0.1), "linf")
    with pytest.raises(SettingError, match=r"^ball.norm: got 'linf'; its dual norms are those of l2 and l1; for linf"):
        FeedForwardVerifier().margins(network, linf, y)  # regression: a certificate of the ball in l2
    with pytest.raises(SettingError, match=r"ball: got 'a radius of -0.1'; give radii that are 0 or above"):
        FeedForwardVerifier().margins(network, region._replace(epsilon=torch.tensor([0.1, -0.1])), y)
    with pytest.raises(SettingError, match=r"ball: got \(\(2, 1, 2, 2\), \(1,\)\); give centers of the sides' shape"):
        FeedForwardVerifier().margins(network, region._replace(epsilon=torch.tensor([0.1])), y)
