"""Attacks: they search a threat model for a point where the loss is high, a lower bound of its maximum.

All are called as ``attack(network, threat_model, x, y) -> x_adv``, but those that look for the nearest image of another
class have no threat model: ``attack(network, x, y) -> x_adv``.
"""

from robust.attacks.apgd import APGD
from robust.attacks.autoattack import AutoAttack
from robust.attacks.boundary import BoundaryAttack, FGSMGrid, GrowingPGD, to_boundary
from robust.attacks.carlini_wagner import CarliniWagnerL2
from robust.attacks.latent import LatentAttack
from robust.attacks.linearized import BoxedHalfspace, LinearizedBoundary
from robust.attacks.msd import MultiSteepestDescent
from robust.attacks.pgd import FGSM, PGD
from robust.attacks.square import Square

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "AutoAttack",
    "BoundaryAttack",
    "BoxedHalfspace",
    "CarliniWagnerL2",
    "FGSMGrid",
    "GrowingPGD",
    "LatentAttack",
    "LinearizedBoundary",
    "MultiSteepestDescent",
    "Square",
    "to_boundary",
]
