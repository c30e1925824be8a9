"""How far the error of a sample may be from that of all examples."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(share: float, samples: int, population: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, for a sample drawn without replacement.

    >>> [round(end, 3) for end in wilson_interval(0.5, samples=100, population=10_000)]
    [0.404, 0.596]
    >>> wilson_interval(0.5, samples=100, population=100)
    (0.5, 0.5)

    Args:
        share: of the sample, in [0, 1].
        samples: size of the sample.
        population: number of examples that it was drawn from; with all of them the interval is the share itself.
        confidence: probability with which the interval covers the share of the population, in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].
    """
    left_out = (population - samples) / max(population - 1, 1)
    z = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(left_out)
    scale = 1 + z * z / samples
    middle = (share + z * z / (2 * samples)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    return max(middle - reach, 0.0), min(middle + reach, 1.0)
