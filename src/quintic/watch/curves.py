"""Curves as a chart needs them: of no more points than it can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DIGITS = 5
"""Significant digits of what is sent: a chart has a few hundred pixels."""


@dataclass(frozen=True)
class Curve:
    """Means of as many neighbours as it takes, at their mean place, with the lowest and the highest
    of them; NaN where none is a number."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def to_dict(self, *, band: bool) -> dict[str, Any]:
        """Return what JSON can say of it; `band`: with the lowest and the highest."""
        lines = {"x": rounded(self.x, DIGITS + 2), "y": rounded(self.y)}
        if band:
            lines |= {"low": rounded(self.low), "high": rounded(self.high)}
        return lines


def reduce_curve(x: np.ndarray, y: np.ndarray, points: int) -> Curve:
    """Return a curve of at most so many points. As many neighbours are one point as the least power
    of two that suffices, so that a curve that grows keeps the points it has."""
    y = y.astype(np.float64)
    size = 1
    while -(-len(x) // size) > points:
        size *= 2
    if size == 1 or not len(x):
        return Curve(x, y, y, y)
    starts = np.arange(0, len(x), size)
    counts = np.diff(np.append(starts, len(x)))
    finite = np.isfinite(y)
    numbers = np.add.reduceat(finite.astype(np.float64), starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(finite, y, 0.0), starts) / numbers
    low = np.minimum.reduceat(np.where(finite, y, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, y, -np.inf), starts)
    return Curve(np.add.reduceat(x, starts) / counts, mean, low, high)


def within(
    x: np.ndarray, y: np.ndarray, bounds: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of a curve within bounds of x, and the neighbours on either side of it."""
    if bounds is None:
        return x, y
    first = max(0, int(np.searchsorted(x, bounds[0])) - 1)
    last = int(np.searchsorted(x, bounds[1], side="right")) + 1
    return x[first:last], y[first:last]


def band_of(curves: Sequence[Curve]) -> Curve:
    """Return the mean of some curves, from the lowest to the highest of them, at the places of the
    one with most points; a curve counts where it has come to, and between its points on straight
    lines."""
    x = max(curves, key=lambda curve: len(curve.x)).x
    values = np.full((len(curves), len(x)), np.nan)
    for row, curve in zip(values, curves, strict=True):
        known = np.isfinite(curve.y)
        if known.any():
            row[:] = np.interp(x, curve.x[known], curve.y[known], left=np.nan, right=np.nan)
    count = np.isfinite(values).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, axis=0) / count
    low = np.where(np.isnan(values), np.inf, values).min(axis=0)
    high = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    return Curve(x, mean, low, high)


def rounded(values: np.ndarray, digits: int = DIGITS) -> list[float | None]:
    """Return values with so many significant digits, whole ones as integers; None for what is not
    finite."""
    finite = np.isfinite(values)
    numbers = np.where(finite & (values != 0), values, 1.0)
    exponent = digits - 1 - np.floor(np.log10(np.abs(numbers)))
    # Divided by a power of ten that is whole, so that the nearest number to the text comes out.
    up, down = 10.0 ** np.maximum(exponent, 0), 10.0 ** np.maximum(-exponent, 0)
    short = np.where(values == 0, 0.0, np.round(numbers * up / down) * down / up)
    return [
        (int(v) if v.is_integer() else v) if known else None
        for v, known in zip(short.tolist(), finite.tolist(), strict=True)
    ]
