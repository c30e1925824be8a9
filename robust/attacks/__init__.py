"""Attacks: they search a threat model for a point where the loss is high, a lower bound of its maximum.

All are called as ``attack(network, threat_model, x, y) -> x_adv``.
"""

from robust.attacks.pgd import FGSM, PGD

__all__ = ["FGSM", "PGD"]
