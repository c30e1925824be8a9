"""Classifiers and generators; normalisation is a classifier's first layer, so inputs are always in [0, 1]."""

from robust.networks.dm import DMLarge, DMSmall
from robust.networks.generators import BudgetGenerator
from robust.networks.normalize import Normalize

__all__ = ["BudgetGenerator", "DMLarge", "DMSmall", "Normalize"]
