"""The results of `quintic scale` as tables."""

from __future__ import annotations

from collections.abc import Iterator

from quintic.compare.statistics import CONFIDENCE
from quintic.console import Table, short_count
from quintic.scale.fit import Interval
from quintic.scale.forecast import growth
from quintic.scale.law import TWO_TERMS, formula
from quintic.scale.observations import COUNTS, Count
from quintic.scale.scaling import Scaling

NOTHING = 1e-9
"""An E below that is shown as 0: where the best is 0, its logarithm may be any number."""
INTERVAL = f"{CONFIDENCE:.0%} interval"


def tables(scaling: Scaling) -> Iterator[tuple[str, Table]]:
    """Yield title and table of each fit, and of what follows from it: a row for each parameter of
    the law, each run that is foreseen, and each budget."""
    for found in scaling.fits:
        counted = "" if found.count == "given" else f", N: {COUNTS[found.count]}"
        intervals = found.parameters()
        if found.form == TWO_TERMS and not found.untold:
            intervals["best N ~ C^"] = growth(found)
        rows = [[name, *_cells(interval)] for name, interval in intervals.items()]
        header = ["", "estimate", "standard error", INTERVAL]
        yield f"{formula(found.form)}{counted}", Table(header, rows)
        if rows := list(_predictions(scaling, found.count)):
            header = ["", "N", "D", "FLOPs", "loss", f"{CONFIDENCE:.0%} of the mean", "of one run"]
            yield f"predictions{counted}", Table(header, rows)
        if rows := list(_optima(scaling, found.count)):
            header = ["FLOPs", "best N", INTERVAL, "D", INTERVAL, "loss", INTERVAL]
            yield f"best sizes{counted}", Table(header, rows)


def _predictions(scaling: Scaling, count: Count) -> Iterator[list[str]]:
    for found in scaling.predictions:
        if found.count == count:
            yield [
                found.label,
                short_count(found.place["parameters"]),
                short_count(found.place["tokens"]),
                f"{found.place['flops']:.3g}",
                f"{found.law.estimate:.4f}",
                between(found.law),
                between(found.run),
            ]


def _optima(scaling: Scaling, count: Count) -> Iterator[list[str]]:
    for found in scaling.optima:
        if found.count == count:
            yield [
                f"{found.flops:.3g}",
                *sized(found.parameters),
                *sized(found.tokens),
                f"{found.loss.estimate:.4f}",
                between(found.loss),
            ]


def between(interval: Interval) -> str:
    """Return the ends of an interval of losses."""
    return f"{interval.low:.4f} to {interval.high:.4f}"


def sized(interval: Interval) -> tuple[str, str]:
    """Return a size or a number of tokens, and its interval."""
    low, middle, high = (
        short_count(value) for value in (interval.low, interval.estimate, interval.high)
    )
    return middle, f"{low} to {high}"


def _cells(interval: Interval) -> tuple[str, str, str]:
    numbers = (interval.estimate, interval.error, interval.low, interval.high)
    estimate, error, low, high = (f"{0.0 if abs(n) < NOTHING else n:.4g}" for n in numbers)
    return estimate, error, f"{low} to {high}"
