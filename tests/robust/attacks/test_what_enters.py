"""Every attack and every wrong input: one clear error each, and none where there is nothing wrong."""

from functools import partial

import pytest
import torch
from torch import nn

from robust.attacks import (
    APGD,
    FGSM,
    PGD,
    AutoAttack,
    CarliniWagnerL2,
    FGSMGrid,
    GrowingPGD,
    LatentAttack,
    LinearizedBoundary,
    MultiSteepestDescent,
    Square,
    to_boundary,
)
from robust.errors import GradientError, NonFiniteLogitsError, SettingError, ZeroGradientError
from robust.scores import nearest_boundary
from robust.threat_models import L1Ball, L2Ball, LinfBall
from tests.wrong_inputs import WRONG, diverged, given, images, small

BALL = LinfBall(0.1)
BALLS = {"linf": BALL, "l2": L2Ball(0.5), "l1": L1Ball(2.0)}


def in_ball(make):
    return lambda network, x, y: make()(network, BALL, x, y)


def nearest(make):
    return lambda network, x, y: make()(network, x, y)


ATTACKS = {
    "FGSM": in_ball(FGSM),
    "PGD": in_ball(partial(PGD, 2)),
    "PGD, restarts": in_ball(partial(PGD, 2, restarts=2, early_stop=True, loss="margin")),
    "PGD, l1": lambda network, x, y: PGD(2)(network, BALLS["l1"], x, y),
    "APGD": in_ball(partial(APGD, 2)),
    "APGD, targeted": lambda network, x, y: APGD(2, loss="targeted_dlr", targets=2)(network, BALLS["l2"], x, y),
    "Square": in_ball(partial(Square, 3)),
    "CarliniWagnerL2": in_ball(partial(CarliniWagnerL2, 2, 2)),
    "MultiSteepestDescent": lambda network, x, y: MultiSteepestDescent(2)(network, BALLS, x, y),
    "FGSMGrid": nearest(partial(FGSMGrid, [0.1, 1.0])),
    "GrowingPGD": nearest(partial(GrowingPGD, steps=2)),
    "LinearizedBoundary": nearest(partial(LinearizedBoundary, tries=3)),
    "AutoAttack": in_ball(AutoAttack),
    "AutoAttack, rand": in_ball(partial(AutoAttack, "rand")),
}
every_attack = pytest.mark.parametrize("name", ATTACKS)


@pytest.fixture(autouse=True)
def _short_ensemble(request, monkeypatch):
    """AutoAttack with few steps."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if not parameters.get("name", "").startswith("AutoAttack"):
        return
    library = pytest.importorskip("pyautoattack", reason="needs the extra eval")

    class Short(library.AutoAttack):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            for part in (self.apgd, self.apgd_targeted, self.fab, self.square):
                part.n_iter = part.n_iter_orig = part.n_queries = 5
            self.apgd.eot_iter = 1

    monkeypatch.setattr(library, "AutoAttack", Short)


@every_attack
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(name, wrong):
    network, x, y, message = given(wrong)
    error = NonFiniteLogitsError if "NaN or infinite" in message else SettingError
    with pytest.raises(error, match="^" + message) as caught:
        ATTACKS[name](network, x, y)
    assert "\n" not in str(caught.value)


class Cut(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.network, self.how = small(), how

    def forward(self, x):
        return self.how(self.network, x)


NO_GRAPH = r"network: got logits from which no gradient leads to the \d examples \(detach, argmax\).*take Square"
ZERO = r"network: got a gradient of zero for all \d examples, though its logits vary; it rounds.*take Square"
CUTS = {
    "detached image": (lambda network, x: network(x.detach()), NO_GRAPH),
    "one-hot": (lambda network, x: 3 * nn.functional.one_hot(network(x).argmax(1), 5).float(), NO_GRAPH),
    "rounded image": (lambda network, x: network((7 * x).round() / 7), ZERO),
}


@every_attack
@pytest.mark.parametrize("cut", CUTS)
def test_a_network_cut_from_its_gradient_is_an_error_but_for_square(name, cut):
    how, message = CUTS[cut]
    network, (x, _) = Cut(how), images()
    y = network(x).argmax(1)
    if name == "Square":
        ATTACKS[name](network, x, y)
        return
    with pytest.raises(ZeroGradientError, match="^" + message):
        ATTACKS[name](network, x, y)


def test_a_cross_entropy_that_saturates_is_an_error_and_the_margin_is_not():
    network, (x, _) = nn.Sequential(small(), nn.Module()), images()
    x = torch.cat([x, x.flip(3)])
    network[1].forward = lambda z: 1e6 * z
    y = network(x).argmax(1)
    with pytest.raises(ZeroGradientError, match=r"the loss saturates: ascend another \(margin, dlr\)"):
        PGD(2, start="clean")(network, BALL, x, y)
    for loss in ("margin", "dlr"):
        x_adv = PGD(2, start="clean", loss=loss)(network, BALL, x, y)
        assert (x_adv != x).any()


def test_a_network_of_two_flat_regions_is_no_error():
    """Constant where an image's mean is above 0.03, another constant below 0.02, and a slope between them alone."""
    x = 0.2 + 0.6 * images()[0]
    pixels = x[0].numel()
    layers = nn.Linear(pixels, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 5)
    values = [(1 / pixels, -0.02), (-1.0, 0.01), (torch.arange(5.0)[:, None], 0.0)]
    for layer, (weight, bias) in zip(layers[::2], values, strict=True):
        nn.init.zeros_(layer.weight).data.add_(weight)
        nn.init.constant_(layer.bias, bias)
    network = nn.Sequential(nn.Flatten(), *layers)
    assert not torch.equal(network(x[:1]), network(torch.zeros_like(x[:1])))
    x_adv = PGD(2, start="clean")(network, BALL, x, network(x).argmax(1))
    assert BALL.contains(x_adv, x).all()


def test_images_at_which_all_relus_are_off_are_no_error():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 5))
    with torch.no_grad():
        network[1].weight.abs_(), network[1].bias.fill_(-float(network[1].weight.sum(1).max()) / 2)
    x = torch.full((3, 1, 6, 6), 0.1)  # dark images: off; bright ones: on
    y = network(x).argmax(1)
    assert torch.equal(PGD(2, start="clean")(network, BALL, x, y), x)
    assert not torch.equal(network(torch.ones_like(x)), network(x))


@every_attack
def test_a_constant_network_is_no_error(name):
    """As one whose last layer begins at zero: what an attack finds of it, nothing, is exact."""
    network, (x, y) = small(), images()
    nn.init.zeros_(network[-1].weight)
    nn.init.zeros_(network[-1].bias)
    found = ATTACKS[name](network, x, y)
    assert found.shape == x.shape
    assert ((found >= 0) & (found <= 1)).all()


def test_a_constant_network_may_have_noise_that_varies():
    class Noisy(nn.Module):
        def forward(self, x):
            return torch.randn(len(x), 5) + 0 * x.sum((1, 2, 3))[:, None]

    x, y = images()
    PGD(2)(Noisy(), BALL, x, y)


class Root(nn.Module):
    """A slope that is infinite where the first pixel is 0, with finite logits."""

    def __init__(self):
        super().__init__()
        self.network = small()

    def forward(self, x):
        return self.network(x) + x[:, 0, 0, :1].sqrt()


@pytest.mark.parametrize("name", ["FGSM", "FGSMGrid", "LinearizedBoundary", "MultiSteepestDescent", "CarliniWagnerL2"])
def test_gradients_that_are_not_finite_are_an_error_that_counts_them(name):
    x, y = images()
    x[:, 0, 0, 0] = 0.5
    x[2:4, 0, 0, 0] = 0.0
    with pytest.raises(
        GradientError, match=r"^network: got gradients that are NaN or infinite for 2 of 6 examples: clip"
    ):
        ATTACKS[name](Root(), x, y)


class Bursting(nn.Module):
    """Logits that overflow where an image is bright."""

    def __init__(self, value):
        super().__init__()
        self.network, self.value = small(), value

    def forward(self, x):
        return torch.where((x > 0.7).flatten(1).any(1, keepdim=True), self.value, self.network(x))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("attack", [PGD(5, start="clean"), APGD(5), Square(5)])
def test_logits_that_overflow_only_on_the_way_are_an_error(attack, value):
    x, y = images()
    with pytest.raises(NonFiniteLogitsError, match="at images that the attack tried: no metric of it means anything"):
        attack(Bursting(value), LinfBall(0.9), 0.5 * x, y)


def test_the_network_is_as_it_was_after_an_error():
    network, (x, y) = nn.Sequential(nn.BatchNorm2d(1), small()).train(), images()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for mode in ("eval", "keep", "frozen"):
        with pytest.raises(SettingError):
            PGD(2, mode=mode)(network, BALL, 255 * x, y)
        assert all(module.training for module in network.modules())
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_type(kind):
    network, (x, y) = small(), images()
    expected = PGD(2, start="clean")(network, BALL, x, y)
    assert torch.equal(PGD(2, start="clean")(network, BALL, x, y.to(kind)), expected)


# codes and scores


def decode(codes):
    return (codes[:, :1, None, None] + torch.linspace(0, 0.5, 36).view(1, 1, 6, 6)).clamp(0, 1)


def latent(network, codes, y, low=None, high=None, decoder=decode):
    low, high = torch.zeros(2) if low is None else low, torch.ones(2) if high is None else high
    return LatentAttack(steps=2)(network, decoder, codes, y, low, high)


def test_the_latent_attack_checks_codes_labels_and_network():
    codes, y = torch.full((6, 2), 0.3), images()[1]
    assert latent(small(), codes, y).shape == codes.shape
    for wrong in (
        "label -1",
        "label K",
        "float labels",
        "labels (B, 1)",
        "one class",
        "bfloat16",
        "half",
        "NaN weights",
    ):
        network, _, labels, message = given(wrong)
        with pytest.raises((SettingError, NonFiniteLogitsError), match="^" + message):
            latent(network, codes, labels)
    for value, message in (
        (codes[:0], r"codes: got \(0, 2\); give at least one code"),
        (codes[:, 0], r"codes: got \(6,\); give at least one code"),
        (codes + torch.nan, "codes: got '12 values that are NaN or infinite'"),
        (codes + 1, "codes: got '6 codes outside their range'"),
    ):
        with pytest.raises(SettingError, match="^" + message):
            latent(small(), value, y)
    with pytest.raises(SettingError, match=r"^low: got \(3,\)"):
        latent(small(), codes, y, low=torch.zeros(3))
    with pytest.raises(ZeroGradientError, match="no gradient leads"):
        latent(small(), codes, y, decoder=lambda z: decode(z.detach()))


@pytest.mark.parametrize("wrong", [name for name, (_, on_y, *_) in WRONG.items() if on_y is None and name != "a list"])
def test_scores_by_the_distance_to_the_boundary_check_the_same(wrong):
    network, x, _, message = given(wrong)
    error = NonFiniteLogitsError if "NaN or infinite" in message else SettingError
    with pytest.raises(error, match="^" + message.replace("attacks need", "scores need")):
        nearest_boundary(network, {"fgsm": FGSMGrid()}, x)


class Between(nn.Module):
    """No logits between the two classes."""

    def forward(self, x):
        bright = x.mean((1, 2, 3))[:, None]
        odd = (bright > 0.4) & (bright < 0.6)
        return torch.where(odd, torch.nan, torch.cat([0.5 - bright, bright - 0.5], 1))


def test_the_way_back_to_the_boundary_refuses_logits_that_are_not_finite():
    x, y = images()
    with pytest.raises(NonFiniteLogitsError):
        to_boundary(diverged(), x, 1 - x, y)
    with pytest.raises(NonFiniteLogitsError, match="at images that the attack tried"):
        to_boundary(Between(), torch.zeros_like(x), torch.ones_like(x), 0 * y)
    with pytest.raises(SettingError, match="x_adv: got 'values from nan to nan'"):
        to_boundary(small(), x, x + torch.nan, y)


def test_dlr_of_two_classes_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(SettingError, match=r"^loss: got 'dlr'; it needs 3 classes; take cross_entropy or margin"):
        PGD(2, loss="dlr")(network, LinfBall(0.1), torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))


def test_a_value_that_rounding_left_outside_is_shown_with_its_digits():
    images = torch.full((1, 1, 4, 4), 1 + 1.2e-7)
    with pytest.raises(
        SettingError,
        match=r"values from 1\.00000012 to 1\.00000012'; rounding took them out of \[0, 1\]; call clamp\(0, 1\)",
    ):
        PGD(1)(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), LinfBall(0.1), images, torch.tensor([0]))
