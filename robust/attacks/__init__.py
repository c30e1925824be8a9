"""Attacks: they search a threat model for a point where the loss is high, a lower bound of its maximum.

All are called as ``attack(network, threat_model, x, y) -> x_adv``.
"""

from robust.attacks._crafting import crafting
from robust.attacks.apgd import APGD
from robust.attacks.autoattack import AutoAttack
from robust.attacks.carlini_wagner import CarliniWagnerL2
from robust.attacks.msd import MultiSteepestDescent
from robust.attacks.pgd import FGSM, PGD
from robust.attacks.square import Square

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "AutoAttack",
    "CarliniWagnerL2",
    "MultiSteepestDescent",
    "Square",
    "crafting",
]
