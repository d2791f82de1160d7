"""The results of `quintic scale` as tables."""

from __future__ import annotations

from quintic.compare.statistics import CONFIDENCE
from quintic.compare.table import quantity
from quintic.console import Table
from quintic.scale.fit import Interval
from quintic.scale.forecast import growth
from quintic.scale.law import TWO_TERMS, named
from quintic.scale.observations import COUNTS
from quintic.scale.scaling import Scaling

NOTHING = 1e-9
"""An E below that is shown as 0: where the best is 0, its logarithm may be any number."""
INTERVAL = f"{CONFIDENCE:.0%} interval"


def fits_table(scaling: Scaling) -> Table:
    """Return a row for each parameter, with estimate, standard error and interval of each fit."""
    several = len(scaling.fits) > 1
    header, columns = [""], []
    for found in scaling.fits:
        name = f"{COUNTS[found.count]}: " if several else ""
        header += [f"{name}estimate", "standard error", INTERVAL]
        intervals = list(found.parameters().values())
        if found.form == TWO_TERMS:
            intervals.append(growth(found))
        columns.append(intervals)
    names = named(scaling.fits[0].form)
    if scaling.fits[0].form == TWO_TERMS:
        names.append("best N ~ C^")
    rows = [
        [name, *(cell for column in columns for cell in _cells(column[place]))]
        for place, name in enumerate(names)
    ]
    return Table(header, rows)


def predictions_table(scaling: Scaling) -> Table | None:
    """Return a row for each run that is foreseen; None where none is."""
    if not scaling.predictions:
        return None
    rows = [
        [
            found.label,
            COUNTS[found.count],
            quantity(found.place["parameters"], "tokens"),
            quantity(found.place["tokens"], "tokens"),
            f"{found.place['flops']:.3g}",
            f"{found.law.estimate:.4f}",
            between(found.law),
            between(found.run),
            "; ".join(found.beyond) or "among the runs",
        ]
        for found in scaling.predictions
    ]
    header = [
        "",
        "N counts",
        "N",
        "D",
        "FLOPs",
        "loss",
        f"{INTERVAL} of the mean",
        "of one run",
        "reach",
    ]
    return Table(header, rows)


def optima_table(scaling: Scaling) -> Table | None:
    """Return a row for each budget and way of counting; None where none is asked for."""
    if not scaling.optima:
        return None
    rows = [
        [
            f"{found.flops:.3g}",
            COUNTS[found.count],
            *sized(found.parameters),
            *sized(found.tokens),
            f"{found.loss.estimate:.4f}",
            between(found.loss),
            "; ".join(found.beyond) or "among the runs",
        ]
        for found in scaling.optima
    ]
    header = ["FLOPs", "N counts", "best N", INTERVAL, "D", INTERVAL, "loss", INTERVAL, "reach"]
    return Table(header, rows)


def between(interval: Interval) -> str:
    """Return the ends of an interval of losses."""
    return f"{interval.low:.4f} to {interval.high:.4f}"


def sized(interval: Interval) -> tuple[str, str]:
    """Return a size or a number of tokens, and its interval."""
    low, middle, high = (
        quantity(value, "tokens") for value in (interval.low, interval.estimate, interval.high)
    )
    return middle, f"{low} to {high}"


def _cells(interval: Interval) -> tuple[str, str, str]:
    numbers = (interval.estimate, interval.error, interval.low, interval.high)
    estimate, error, low, high = (f"{0.0 if abs(n) < NOTHING else n:.4g}" for n in numbers)
    return estimate, error, f"{low} to {high}"
