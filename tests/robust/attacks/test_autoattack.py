"""The wrapper of pyautoattack: strength, state that can be resumed, silence, and what it refuses."""

import sys

import pytest
import torch
from torch import nn

import robust.random
from robust.attacks import APGD, PGD, AutoAttack
from robust.errors import SettingError
from robust.threat_models import L1Ball, L2Ball, LinfBall, PixelBox
from tests.short_autoattack import shortened


@pytest.fixture
def library():
    return pytest.importorskip("pyautoattack", reason="needs the extra eval")


@pytest.fixture
def short(library, monkeypatch):
    """The standard ensemble with fewer steps, to save time, and the order in which its attacks are run."""
    ran = []

    class Noted(shortened(library)):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            for part in (self.apgd, self.apgd_targeted, self.fab, self.square):
                part.perturb = self.noted(part.perturb, part)

        def noted(self, perturb, part):
            def call(x, y):
                ran.append((type(part).__name__, len(x)))
                return perturb(x, y)

            return call

    monkeypatch.setattr(library, "AutoAttack", Noted)
    return ran


def test_the_state_of_one_network_is_not_that_of_another_with_the_same_weights(trained, short, tmp_path):
    """Regression: a defence without weights got the verdicts of the network behind it."""
    network, x, y = trained[0], trained[1][:8], trained[2][:8]
    for _ in range(2):
        for each in (nn.Sequential(network), nn.Sequential(network, nn.Softplus())):
            AutoAttack(state_folder=str(tmp_path))(each, LinfBall(0.1), x, y)
    assert len(list(tmp_path.glob("*.pt"))) == 2


@pytest.mark.thorough_but("linf")
@pytest.mark.parametrize("ball", [LinfBall(0.1), L2Ball(1.0), L1Ball(6.0)], ids=["linf", "l2", "l1"])
def test_leaves_no_more_than_pgd(trained, short, ball, capfd):
    network, x, y = (trained[0], trained[1][:40], trained[2][:40])
    noise = torch.random.get_rng_state()
    x_adv = AutoAttack()(network, ball, x, y)
    assert torch.equal(noise, torch.random.get_rng_state())
    assert capfd.readouterr() == ("", "")
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert ball.contains(x_adv, x).all()
    left = (network(x_adv).argmax(1) == y).sum()
    for weaker in (PGD(10), APGD(10)):
        assert left <= (network(weaker(network, ball, x, y)).argmax(1) == y).sum() + 1  # of 40, by chance
    assert [name for name, _ in short] == ["APGDAttack", "APGDAttack_targeted", "FABAttack_PT", "SquareAttack"]


@pytest.mark.thorough
@pytest.mark.parametrize("ball", [LinfBall(0.07), L2Ball(0.6), L1Ball(4.0)], ids=["linf", "l2", "l1"])
def test_what_is_found_for_an_image_depends_on_no_other(trained, short, ball):
    network, x, y = (trained[0], trained[1][:8], trained[2][:8])
    whole = AutoAttack()(network, ball, x, y)
    pieces = [AutoAttack(batch_size=3)(network, ball, x[part::2], y[part::2]) for part in (0, 1)]
    verdicts = network(whole).argmax(1) != y
    assert 0 < verdicts.sum() < len(y)
    for part, found in enumerate(pieces):
        torch.testing.assert_close(found, whole[part::2], rtol=0, atol=1e-4)


class NumberedNoise(nn.Module):
    """Noise for each example, drawn by its number."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x + 0.05 * robust.random.randn_like(x))


def test_the_rand_version_draws_by_the_examples_numbers(trained, library, monkeypatch):
    monkeypatch.setattr(library, "AutoAttack", shortened(library, steps=5))
    network, x, y = NumberedNoise(trained[0]), trained[1][:10], trained[2][:10]

    def found(rows, batch_size):
        attack = AutoAttack("rand", batch_size=batch_size)
        with robust.random.numbered((0,), rows):
            return attack(network, LinfBall(0.07), x[rows.start :: rows.step], y[rows.start :: rows.step])

    whole = found(range(10), 10)
    for start in (0, 1):
        torch.testing.assert_close(found(range(start, 10, 2), 3), whole[start::2], rtol=0, atol=1e-4)


def test_an_interrupted_evaluation_goes_on(trained, short, tmp_path, monkeypatch):
    network, x, y = (trained[0], trained[1][:10], trained[2][:10])
    whole = AutoAttack(batch_size=8)(network, LinfBall(0.08), x, y)
    order, short[:] = list(short), []
    attack = AutoAttack(batch_size=8, state_folder=tmp_path / "state")
    with monkeypatch.context() as patch:
        run = attack._attack
        patch.setattr(
            attack, "_attack", lambda runner, name, *rest: 1 / 0 if name == "fab-t" else run(runner, name, *rest)
        )
        with pytest.raises(ZeroDivisionError):
            attack(network, LinfBall(0.08), x, y)
    assert torch.equal(attack(network, LinfBall(0.08), x, y), whole)
    assert short == order  # each attack once
    assert torch.equal(attack(network, LinfBall(0.08), x, y), whole)
    assert short == order  # nothing is left to do
    attack(network, LinfBall(0.09), x, y)
    assert len(list((tmp_path / "state").iterdir())) == 2  # another radius is another evaluation


def test_works_in_inference_mode_with_few_classes(short):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).train(), torch.rand(6, 1, 8, 8)
    y = network(x).argmax(1)
    with torch.inference_mode():
        x_adv = AutoAttack()(network, LinfBall(0.2), x.clone(), y.clone())
    assert (network(x_adv).argmax(1) != y).any()
    assert network.training


class Noisy(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x + 0.1 * torch.randn_like(x))


def test_networks_that_draw_random_numbers_need_the_rand_version(trained, library):
    network, x, y = Noisy(trained[0]), trained[1][:10], trained[2][:10]
    with pytest.raises(SettingError, match=r"version: got 'standard'; take .rand."):
        AutoAttack()(network, LinfBall(0.1), x, y)


class Shaken(nn.Module):
    """Linear logits with noise that flips some verdicts from pass to pass."""

    def __init__(self, noise):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.noise = nn.Linear(36, 5), noise

    def forward(self, x):
        return self.linear(x.flatten(1)) + self.noise * torch.randn(len(x), 5)


@pytest.mark.parametrize("ball", [LinfBall(0.01), L2Ball(0.1), L1Ball(0.1)], ids=["linf", "l2", "l1"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_rand_version_returns_no_image_as_it_was(library, monkeypatch, ball, noise):
    """Neither what it has not broken, nor what a single noisy pass has misclassified: the caller judges all again."""

    class Short(library.AutoAttack):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            self.apgd.n_iter = self.apgd.n_iter_orig = 10
            self.apgd.eot_iter = 3

    monkeypatch.setattr(library, "AutoAttack", Short)
    network = Shaken(noise)
    x = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = network.linear(x.flatten(1)).argmax(1)
    x_adv = AutoAttack("rand")(network, ball, x, y)
    assert (x_adv != x).flatten(1).any(1).all()
    assert ball.contains(x_adv, x).all()
    margin = margins(network.linear, x_adv, y) - margins(network.linear, x, y)
    assert (margin < 0).float().mean() > (0.95 if noise == 0 else 0.6)  # perturbed towards the boundary
    assert (network.linear(x_adv.flatten(1)).argmax(1) == y).float().mean() > 0.5  # most are not broken


def margins(linear, x, y):
    logits = linear(x.flatten(1)).detach()
    label = logits.gather(1, y[:, None]).squeeze(1)
    return label - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def test_a_small_scale_of_the_logits_hides_no_noise(library):
    class Tiny(Noisy):
        def forward(self, x):
            return 1e-8 * super().forward(x)

    network = Tiny(nn.Sequential(nn.Flatten(), nn.Linear(36, 5)))
    x = torch.rand(4, 1, 6, 6)
    with pytest.raises(SettingError, match="two passes of this network differ"):
        AutoAttack()(network, LinfBall(0.1), x, torch.arange(4))


def test_what_it_refuses(trained, library):
    network, x, y = (trained[0], trained[1][:4], trained[2][:4])
    with pytest.raises(SettingError, match="threat_model: got 'PixelBox'; take APGD"):
        AutoAttack()(network, PixelBox(torch.full_like(x, 0.1)), x, y)
    with pytest.raises(SettingError, match="at least 4 classes"):
        AutoAttack()(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), LinfBall(0.1), x, y % 3)
    with pytest.raises(SettingError, match="network: got 'outputs that sum to 1'; give a network whose outputs are"):
        AutoAttack()(nn.Sequential(network, nn.Softmax(1)), LinfBall(0.1), x, y)
    with pytest.raises(SettingError, match="version: got 'plus'"):
        AutoAttack("plus")
    with pytest.raises(SettingError, match="batch_size: got 0"):
        AutoAttack(batch_size=0)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    x = torch.rand(1, 1, 6, 6)
    with pytest.raises(SettingError, match="install it: uv sync --extra eval"):
        AutoAttack()(nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), LinfBall(0.1), x, torch.zeros(1, dtype=torch.long))
