"""Slow loops report how much of the whole work is done; to nobody, they report nothing."""

import itertools

import pytest
import torch
from torch import nn

from robust.attacks import APGD, PGD, AutoAttack, CarliniWagnerL2, FGSMGrid, GrowingPGD, LinearizedBoundary, Square
from robust.progress import advance, loop, tracked, unwatch, watch
from robust.scores import nearest_boundary
from robust.threat_models import LinfBall
from tests.callbacks.trained import images, stored
from tests.short_autoattack import shortened


@pytest.fixture
def seen():
    """The reported fractions."""
    fractions = []
    watch(fractions.append)
    yield fractions
    unwatch()


def test_nested_loops_give_one_fraction(seen):
    for _ in tracked(range(2)):
        for _ in tracked(range(5)):
            pass
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1])


def test_a_loop_that_ends_early_completes_its_step(seen):
    for _ in tracked(range(2)):
        for index in tracked(range(10)):
            if index == 1:
                break
    assert seen == pytest.approx([0.05, 0.5, 0.55, 1.0])


def test_loops_that_follow_each_other_never_go_back(seen):
    for _ in tracked(range(2)):
        for _ in range(2):
            for _ in tracked(range(2)):
                pass
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_a_loop_covers_as_many_steps_as_it_says(seen):
    with loop(10):
        with loop(2, covers=5):
            advance()
        advance(5)
        advance()
    assert seen == pytest.approx([0.25, 0.5, 0.6])


def test_an_error_leaves_its_loops(seen):
    with pytest.raises(ZeroDivisionError), loop(7):
        raise ZeroDivisionError
    with loop(2):
        advance()
    assert seen == [0.5]


def test_nobody_watches_and_nothing_happens():
    assert list(tracked(range(3))) == [0, 1, 2]
    with loop(3):
        advance()


@pytest.mark.parametrize(
    "attack",
    [PGD(20), PGD(5, restarts=4), APGD(steps=20), Square(queries=20)],
    ids=["PGD", "restarts", "APGD", "Square"],
)
def test_attacks_report_their_steps(attack, seen):
    x, y = images()
    attack(stored(), LinfBall(0.01), x[:8], y[:8])
    assert len(seen) >= 20
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_carlini_wagner_and_the_margins_report(seen):
    x, y = images()
    CarliniWagnerL2(steps=3, searches=2, targets=2)(stored(), LinfBall(0.5), x[:4], y[:4])
    assert seen[-1] == 1
    watch(seen.append)
    del seen[:]
    attacks = {"bg": LinearizedBoundary(tries=5), "fgsm": FGSMGrid(), "pgd": GrowingPGD(steps=4)}
    nearest_boundary(stored(), attacks, x[:4], 3)
    assert len(set(seen)) > 20
    assert seen[-1] == 1


class Linear(nn.Module):
    """Four classes whose gradients are never zero."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_autoattack_reports_inside_the_attacks_of_its_ensemble(seen, monkeypatch):
    library = pytest.importorskip("pyautoattack", reason="needs the extra eval")
    monkeypatch.setattr(library, "AutoAttack", shortened(library, steps=20))
    torch.manual_seed(0)
    network, x = Linear(), torch.rand(2, 1, 4, 4)
    y = network(x).argmax(1)
    AutoAttack()(network, LinfBall(0.001), x, y)  # all withstand it
    assert len(set(seen)) > 100
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    assert max(later - earlier for earlier, later in itertools.pairwise(seen)) < 0.1
