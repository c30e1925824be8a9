"""Attacks: they search a threat model for a point where the loss is high, a lower bound of its maximum."""

from robust.attacks.pgd import PGD

__all__ = ["PGD"]
