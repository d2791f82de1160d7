"""The power law by which the best learning rate moves with a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Exponent:
    """p in: best learning rate ~ size^p."""

    value: float
    low: float
    high: float
    """The 95% interval, of Student's t about the line through the means at each size."""
    sizes: int


def fit_exponent(sizes: Sequence[float], powers: Sequence[float]) -> Exponent:
    """Return the slope of log2 of the best rate against log2 of the size, by least squares, for at
    least three sizes.

    Each size counts once, with the mean of its seeds: what the seeds of a size share, such as the
    shape of its curve, is in what the line leaves over, and so in the interval.
    """
    from scipy import stats

    line = stats.linregress([math.log2(size) for size in sizes], powers)
    half = float(stats.t.ppf(0.975, len(sizes) - 2) * line.stderr)
    return Exponent(float(line.slope), line.slope - half, line.slope + half, len(sizes))
