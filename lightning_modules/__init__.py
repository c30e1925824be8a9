"""How a method learns: one file a method."""

from lightning_modules.base import RobustClassifier
from lightning_modules.contextual_budgets import ContextualBudgets

__all__ = ["ContextualBudgets", "RobustClassifier"]
