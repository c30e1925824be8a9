"""torchmetrics classes, exact under distributed evaluation."""

from robust.metrics.accuracy import Accuracy, AccuracyDeviation
from robust.metrics.error_rate import ErrorRate
from robust.metrics.weighted_accuracy import WeightedAccuracy

__all__ = ["Accuracy", "AccuracyDeviation", "ErrorRate", "WeightedAccuracy"]
