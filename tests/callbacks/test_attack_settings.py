"""Attacks, names and radii that an evaluation refuses in its constructor."""

import pytest

from callbacks import (
    AccuracyCurve,
    AdversarialEvaluation,
    AttackCase,
    GradientMaskingChecks,
    RobustnessScore,
    WeightedMinimaxEvaluation,
)
from callbacks.evaluation.attack_settings import check_call
from robust.attacks import PGD, FGSMGrid, GrowingPGD
from robust.errors import SettingError

BOUNDARY = "it cannot be called as attack(network, threat_model, x, y); give one such as robust.attacks.PGD"
RADIUS = "give a radius in pixel units"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: AdversarialEvaluation({"a": AttackCase(GrowingPGD())}),
            f"AdversarialEvaluation.attacks.a.attack: got 'GrowingPGD'; {BOUNDARY}",
        ),
        (lambda: AccuracyCurve({"a": FGSMGrid()}, [0.1]), f"AccuracyCurve.attacks.a: got 'FGSMGrid'; {BOUNDARY}"),
        (
            lambda: RobustnessScore({"a": PGD(2)}),
            "RobustnessScore.attacks.a: got 'PGD'; it cannot be called as attack(network, x, y); give Linearized",
        ),
        (
            lambda: AdversarialEvaluation({"": AttackCase(PGD(2))}),
            "AdversarialEvaluation.attacks: got ''; give it a name, without slashes",
        ),
        (lambda: AccuracyCurve({"a/b": PGD(2)}, [0.1]), "AccuracyCurve.attacks: got 'a/b'; give it a name, without"),
        (lambda: RobustnessScore({" ": GrowingPGD()}), "RobustnessScore.attacks: got ' '; give it a name, without"),
        (
            lambda: AdversarialEvaluation({"a": AttackCase(PGD(2))}, balls={"linf": 2.0}),
            f"AdversarialEvaluation.balls.linf: got 2.0; {RADIUS}",
        ),
        (
            lambda: AdversarialEvaluation({"a": AttackCase(PGD(2))}, balls={"l2": -1.0}),
            "AdversarialEvaluation.balls.l2: got -1.0; give a norm over all pixels",
        ),
        (lambda: AccuracyCurve({"a": PGD(2)}, [2.0]), f"AccuracyCurve.epsilons: got 2.0; {RADIUS}"),
        (lambda: GradientMaskingChecks({"linf": 2.0}), f"GradientMaskingChecks.epsilons.linf: got 2.0; {RADIUS}"),
        (
            lambda: WeightedMinimaxEvaluation(1, 0.1, alphas=(1.0, 1.00000001)),
            "WeightedMinimaxEvaluation.alphas: got (1.0, 1.00000001); give at least one, with different names in six",
        ),
        (lambda: WeightedMinimaxEvaluation(1, 0.1, alphas=()), "WeightedMinimaxEvaluation.alphas: got (); give at"),
    ],
)
def test_wrong_attacks_names_and_radii_are_named(make, message):
    with pytest.raises(SettingError) as error:
        make()
    assert str(error.value).startswith(message)


def test_functions_of_any_arguments_are_accepted():
    check_call("a", lambda *arguments: arguments, ("network", "x", "y"), "")
    check_call("a", lambda network, threat_model, x, y, steps=3: x, ("network", "threat_model", "x", "y"), "")
    check_call("a", max, ("network", "x", "y"), "")  # has no signature
