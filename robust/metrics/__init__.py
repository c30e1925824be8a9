"""torchmetrics classes, exact under distributed evaluation."""

from robust.metrics.accuracy import Accuracy, AccuracyStd
from robust.metrics.common_variance import CommonVariance
from robust.metrics.gathered import Gathered
from robust.metrics.pixel_means import PixelMeans
from robust.metrics.sampled_score import SampledScore
from robust.metrics.weighted_accuracy import WeightedAccuracy

__all__ = [
    "Accuracy",
    "AccuracyStd",
    "CommonVariance",
    "Gathered",
    "PixelMeans",
    "SampledScore",
    "WeightedAccuracy",
]
