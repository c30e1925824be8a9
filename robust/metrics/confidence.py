"""Confidence interval of a fraction that was measured on a sample."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(
    fraction: float, num_samples: int, population: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's score interval of a fraction, for a sample drawn without replacement.

    >>> [round(end, 3) for end in wilson_interval(0.5, num_samples=100, population=10_000)]
    [0.404, 0.596]
    >>> wilson_interval(0.5, num_samples=100, population=100)
    (0.5, 0.5)

    Args:
        fraction: fraction measured on the sample, in [0, 1].
        num_samples: size of the sample.
        population: number of examples from which it was drawn; a sample of all gives the fraction itself.
        confidence: probability that the interval covers the fraction of the population, in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].
    """
    left_out = (population - num_samples) / max(population - 1, 1)
    z = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(left_out)
    scale = 1 + z * z / num_samples
    middle = (fraction + z * z / (2 * num_samples)) / scale
    reach = z / scale * math.sqrt(fraction * (1 - fraction) / num_samples + z * z / (4 * num_samples**2))
    return max(middle - reach, 0.0), min(middle + reach, 1.0)
