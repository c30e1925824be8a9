"""Networks that compute something else than what a name or a first pass suggests have no certificate by it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust.attacks import APGD
from robust.bounds import FeedForwardVerifier, certify
from robust.bounds.operations.maps import LinearMap
from robust.bounds.operations.registry import register
from robust.errors import UnsupportedLayerError
from robust.networks import Normalize
from robust.threat_models import L1Ball, LinfBall
from tests.robust.bounds.made import softplus_network

X = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


def ending_in(function):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2), Apply(function)).eval()


def margins(network, x=X, method="crown-ibp", epsilon=0.0):
    return FeedForwardVerifier(method).margins(network, LinfBall(epsilon).region(x), torch.zeros(len(x)).long())


def test_a_softplus_that_falls_at_its_threshold_is_refused():
    """Regression: the class that the network does not predict was certified."""
    network, x = softplus_network(threshold=2.0)
    with pytest.raises(
        UnsupportedLayerError, match="give a threshold of at least 20: PyTorch's function falls at a low"
    ):
        certify(FeedForwardVerifier(), network, LinfBall(0.001), x, torch.tensor([0]))


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_the_fall_of_a_softplus_at_20_is_part_of_its_error(method):
    """Regression: 2e-9 is far above the rounding of float64."""
    network, x = softplus_network(threshold=20.0, gap=1e-9)
    assert network(x).argmax(1).item() == 1, "by the threshold alone"
    assert not certify(FeedForwardVerifier(method), network, LinfBall(0.0), x, torch.tensor([0])).certified


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("back", [False, True])
def test_a_lower_precision_is_refused(kind, back):
    """Regression: at the end of a network nothing compared it."""
    network = ending_in(lambda h: h.to(kind).float() if back else h.to(kind))
    with pytest.raises(UnsupportedLayerError, match=f"its result has the lower precision {kind}"):
        margins(network)


@pytest.mark.parametrize("drop", [F.dropout, lambda h: F.alpha_dropout(h, 0.01, True), lambda h: F.dropout(h, 0.01)])
def test_dropout_that_evaluation_does_not_turn_off_is_refused(drop):
    """Regression: with few activations it was accepted most of the time."""
    with pytest.raises(UnsupportedLayerError, match="it drops activations in evaluation mode, too; pass training="):
        margins(ending_in(drop))


@pytest.mark.parametrize("drop", [lambda h: F.dropout(h, 0.0), lambda h: F.dropout(h, training=False), F.alpha_dropout])
def test_dropout_that_is_off_is_the_identity(drop):
    assert margins(ending_in(drop)).shape == (2, 1)


class ReadsANumber(nn.Module):
    """Negates its logits if a weight is negative."""

    def __init__(self):
        super().__init__()
        self.linear, self.sign = nn.Linear(16, 2), nn.Parameter(torch.ones(1))

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return logits if self.sign.item() > 0 else -logits


@pytest.mark.parametrize("change", [lambda sign: sign.data.fill_(-1.0), lambda sign: sign.data.neg_()])
def test_a_weight_that_a_pass_reads_is_read_again(change):
    """Regression: a change through ``data`` kept the other branch, and so did any in the loss of a training."""
    network, labels = ReadsANumber(), torch.zeros(2).long()
    verifier, box = FeedForwardVerifier(), LinfBall(0.0).interval(X)
    before = verifier.cross_entropy(network, box, labels, 0.0)
    change(network.sign)
    after = verifier.cross_entropy(network, box, labels, 0.0)
    assert torch.allclose(after, F.cross_entropy(network(X), labels, reduction="none"), atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)
    logits = network(X)
    assert torch.allclose(margins(network)[:, 0], logits[:, 0] - logits[:, 1], atol=1e-5)


def test_crown_tightens_behind_a_normalisation_that_copies_the_image():
    """Regression: its three channels were taken for independent ones."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    copying = nn.Sequential(Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]), *layers).eval()
    scale = nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        scale.weight.copy_((1 / torch.tensor([0.2, 0.3, 0.4])).view(3, 1, 1, 1))
        scale.bias.copy_(-torch.tensor([0.4, 0.5, 0.6]) / torch.tensor([0.2, 0.3, 0.4]))
    linear = nn.Sequential(scale, *layers).eval()
    assert torch.allclose(
        margins(copying, method="crown", epsilon=0.2), margins(linear, method="crown", epsilon=0.2), atol=1e-4
    )


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_what_float32_images_leave_open_is_decided_in_float64_of_a_float64_network(method):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double().eval()
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([1e-7, 0.0]) + 1.0)
    for margins_too in (True, False):
        certified = certify(
            FeedForwardVerifier(method), network, LinfBall(0.1), X, torch.zeros(2).long(), margins=margins_too
        ).certified
        assert certified.all()


def test_attacks_under_active_dropout_go_on_after_a_chance_error():
    """Regression: one unlucky mask ended the search for an image."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4))
    x = torch.rand(32, 1, 8, 8)
    y = network.eval()(x).argmax(1)
    x_adv = APGD(steps=30, mode="keep")(network.train(), LinfBall(0.1), x, y)
    assert (network.eval()(x_adv).argmax(1) != y).float().mean() > 0.3


def test_apgd_in_a_large_l1_ball():
    """Regression: its wider start was above the largest radius that balls may have."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    assert APGD(steps=5)(network, L1Ball(5e5), X, torch.zeros(2).long()).shape == X.shape


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
@pytest.mark.parametrize(
    "copied",
    [
        lambda x: x.expand(len(x), 3, 4, 4),
        lambda x: x.broadcast_to(len(x), 3, 4, 4),
        lambda x: x.expand_as(torch.zeros(len(x), 3, 4, 4)),
    ],
)
def test_copies_for_any_number_of_images(copied, method):
    """Regression: the number of images of the recording was kept, and the comparison ended in a shape error."""
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    network, same = nn.Sequential(Apply(copied), *layers).eval(), nn.Sequential(Apply(repeated), *layers).eval()
    torch.testing.assert_close(margins(network, method=method, epsilon=0.1), margins(same, method=method, epsilon=0.1))


def repeated(x):
    return x.repeat(1, 3, 1, 1)


class Fixed(nn.Module):
    """A layer whose bound is for one number of images."""

    def forward(self, x):
        return x.clone()


@register(Fixed)
def fixed(module, x):
    """A bound that a user could write."""
    return LinearMap(lambda h: h + h.new_zeros(7, 1))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda h: h.narrow(0, 0, len(h)), "network layer '2': got 'narrow .*it takes a part of a batch"),
        (lambda h: h.index_select(0, torch.arange(len(h))), "network layer '2': got 'index_select .*it takes a part"),
        (
            lambda h: h * torch.arange(len(h))[:, None],
            "network layer '2': got 'mul .*something else than its bound",
        ),
        (Fixed(), "network: got 'Sequential'; its bound fails for 2 images"),
    ],
)
def test_an_operation_that_depends_on_the_number_of_images_is_refused(function, message):
    with pytest.raises(UnsupportedLayerError, match=f"^{message}"):
        margins(ending_in(function))


@pytest.mark.parametrize("part", [False, True])
def test_a_compiled_network_is_refused_by_name(part):
    """Regression: the recording ended in an error inside the compiler."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    if part:
        network = nn.Sequential(torch.compile(network, backend="eager"))
    else:
        network.compile(backend="eager")
    with pytest.raises(UnsupportedLayerError, match=r"torch\.compile hides its operations; give the netw"):
        margins(network)
