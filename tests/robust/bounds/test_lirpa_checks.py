"""What auto_LiRPA cannot bound is refused with its cause, what it bounds in matrices alone is bounded so."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust.bounds import LirpaVerifier
from robust.bounds._lirpa_graph import LirpaGraph
from robust.errors import SettingError, UnsupportedLayerError
from robust.threat_models import Box, LinfBall, PixelBox
from tests.lirpa_cases import METHODS, Block, needs_lirpa, seeded, worst_sampled
from tests.random_networks import Lambda

pytestmark = needs_lirpa


class SumOfLinear(nn.Module):
    """Two linear layers of the same input, added."""

    def __init__(self, size=18):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(size, 8), nn.Linear(size, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.flatten(x, 1)
        return self.last(F.relu(self.first(x) + self.second(x)))


def oblong_residual_net():
    body = [nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), Block(4, 4, 1), Block(4, 5, 2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(5 * 3 * 3, 4))


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("build", "shape"),
    [(SumOfLinear, (2, 3, 3)), (oblong_residual_net, (3, 6, 5)), (oblong_residual_net, (3, 5, 6))],
)
def test_residual_networks_of_oblong_images_and_sums_are_bounded_soundly(build, shape, method):
    network = seeded(build)
    torch.manual_seed(1)
    x, y = torch.rand(3, *shape), torch.tensor([0, 3, 1])
    for size in (0.0, 0.1):
        budgets = size * torch.rand_like(x)
        margins = LirpaVerifier(method=method, iterations=3).margins(network, PixelBox(budgets).interval(x), y)
        worst, _ = worst_sampled(network, x, y, budgets)
        assert (margins <= worst + 1e-4).all()
        if size == 0:
            torch.testing.assert_close(margins, worst, rtol=1e-4, atol=1e-4)


def test_matrices_are_taken_only_where_patches_fail():
    x, y = torch.rand(2, 2, 3, 3), torch.tensor([0, 1])
    for network, patches in (
        (SumOfLinear(), False),
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 4)), True),
    ):
        verifier = LirpaVerifier(method="crown")
        verifier.margins(network.eval(), LinfBall(0.1).interval(x), y)
        (graphs,) = verifier._graphs.values()
        assert [graph.patches for graph in graphs.values()] == [patches]


def head(*layers, features):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3)).eval()


reflecting = nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")
always_dropped = Lambda(lambda h: F.dropout(h, 0.5, training=True))
viewed = Lambda(lambda h: h.view(h.shape[0], -1))


@pytest.mark.parametrize(
    ("network", "method", "message"),
    [
        (
            head(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), features=72),
            "ibp",
            "'0'.*reflect.*zero padding only",
        ),
        (head(nn.Conv2d(1, 2, 3, padding="same"), features=72), "ibp", "'0'.*padding=same.*give it as a number"),
        (head(nn.ReLU(), always_dropped, features=36), "ibp", "network: .*two passes of the same image differ"),
        (head(nn.BatchNorm2d(1, track_running_stats=False), features=36), "ibp", "'0'.*track_running_stats to true"),
        (head(nn.MaxPool2d(3, 2, 1), features=9), "crown-ibp", "'0'.*stride equal to the kernel.*use method ibp"),
        (head(nn.MaxPool2d(4, ceil_mode=True), features=4), "ibp", "'0'.*cannot trace ceil_mode"),
        (nn.Sequential(viewed, nn.Linear(36, 3)), "ibp", "fixes the batch size it traces; flatten with torch.flatten"),
    ],
)
def test_the_cause_is_named(network, method, message):
    with pytest.raises(UnsupportedLayerError, match=message):
        LirpaVerifier(method=method).margins(
            network, LinfBall(0.1).interval(torch.rand(2, 1, 6, 6)), torch.tensor([0, 1])
        )


def test_overlapping_pooling_is_bounded_by_intervals():
    network, x, y = head(nn.MaxPool2d(3, 2, 1), features=9), torch.rand(2, 1, 6, 6), torch.tensor([0, 1])
    budgets = torch.full_like(x, 0.05)
    margins = LirpaVerifier(method="ibp").margins(network, PixelBox(budgets).interval(x), y)
    assert (margins <= worst_sampled(network, x, y, budgets)[0] + 1e-5).all()


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
@pytest.mark.parametrize("error", [0.01, 0.1])
def test_a_version_whose_bounds_of_boxes_are_too_tight_is_refused(monkeypatch, method, error):
    plain = LirpaGraph.bound

    def too_tight(self, box, rows, method, *, upper=True):
        low, high = plain(self, box, rows, method, upper=upper)
        inside = error * float((box.upper - box.lower).amax())  # points stay exact
        return low + inside, None if high is None else high - inside

    monkeypatch.setattr(LirpaGraph, "bound", too_tight)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    box, verifier = LinfBall(0.1).interval(torch.rand(2, 1, 6, 6)), LirpaVerifier(method=method)
    with pytest.raises(UnsupportedLayerError, match="do not hold its corners: this version of it is not sound here"):
        verifier.margins(network, box, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([-1, 0])}, r"labels: got 'labels from -1 to 0'.*\[0, 3\)"),
        ({"y": torch.tensor([3, 0])}, r"labels from 0 to 3"),
        ({"y": torch.tensor([0.0, 1.0])}, r"labels: got 'torch.float32'; give integer"),
        ({"x": torch.rand(2, 1, 6, 6).half()}, r"box: got 'torch.float16'"),
        ({"x": torch.rand(0, 1, 6, 6), "y": torch.zeros(0).long()}, r"box: got .*at least one image"),
        ({"x": 4 * torch.rand(2, 1, 6, 6) - 2}, r"box: got 'midpoints from -.*normalise inside the network"),
        ({"x": torch.rand(2, 1, 6, 6).index_fill(3, torch.tensor(0), torch.nan)}, r"box: got 'radii from nan"),
        ({"network": head(features=36).half()}, r"bounds need float32"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(36, 1))}, r"network: got '1 logits'"),
    ],
)
@pytest.mark.parametrize("call", ["margins", "cross_entropy"])
def test_wrong_inputs_are_one_clear_error(change, message, call):
    case = {"x": torch.rand(2, 1, 6, 6), "y": torch.tensor([0, 1]), "network": head(features=36)} | change
    with pytest.raises(SettingError, match=message):
        getattr(LirpaVerifier(), call)(case["network"], Box(case["x"], case["x"]), case["y"])
