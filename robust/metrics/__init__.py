"""torchmetrics classes, exact under distributed evaluation."""

from robust.metrics.error_rate import ErrorRate

__all__ = ["ErrorRate"]
