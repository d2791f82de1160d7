"""What the page asks for: curves, differences between configs, heat maps of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from quintic.compare.groups import Group, differing_settings, group_runs
from quintic.diagnostics.heatmaps import HeatMaps, read_heat_maps
from quintic.errors import QuinticError
from quintic.tasks.curves import STDERR, chance_field, chance_level, is_metric
from quintic.watch.curves import Curve, band_of, reduce_curve, within
from quintic.watch.run import WatchedRun

AXES = {"tokens": "tokens", "steps": "step", "seconds": "elapsed_s", "flops": "tokens"}
"""Field of a record that places it on each axis; tokens times what one costs are FLOPs."""
MOST_POINTS = 4_000


class BadQueryError(ValueError):
    """A query that no page of ours sends."""


def curves(runs: Mapping[str, WatchedRun], query: Mapping[str, str]) -> dict[str, Any]:
    """Return the curves of a field over an axis, of runs or, `grouped`, of those that differ only
    in the seed, each of at most `points` points, within `from` and `to` where they are given; a
    score has its standard error for a band, and the accuracies of guessing for levels."""
    chosen, axis = _chosen(runs, query), query.get("axis", "tokens")
    field = query.get("field", "")
    if axis not in AXES:
        raise BadQueryError(f"axis {axis[:40]!r}")
    points = min(MOST_POINTS, max(2, int(_number(query, "points", 1000))))
    bounds = None
    if "from" in query or "to" in query:
        bounds = (_number(query, "from", -math.inf), _number(query, "to", math.inf))

    def column(run: WatchedRun, name: str) -> Curve:
        x, y = run.metrics.column(name, AXES[axis])
        if axis == "flops":
            x = x * run.flops_per_token if run.flops_per_token is not None else x[:0]
            y = y[: len(x)]
        return reduce_curve(*within(x, y, bounds), points)

    def curve(run: WatchedRun) -> Curve:
        found = column(run, field)
        if is_metric(field) and len((error := column(run, field + STDERR)).x) == len(found.x):
            return replace(found, low=found.y - error.y, high=found.y + error.y)
        return found

    series = []
    for label, members in _members(chosen, grouped=query.get("grouped") == "1"):
        known = [found for run in members if len((found := curve(run)).x)]
        if known:
            whole = band_of(known) if len(members) > 1 else known[0]
            band = len(members) > 1 or query.get("band") == "1"
            ids = [run.id for run in members]
            series.append({"ids": ids, "label": label, **whole.to_dict(band=band)})
    return {"axis": axis, "field": field, "series": series, "levels": _chances(chosen, field)}


def _chances(chosen: Sequence[WatchedRun], field: str) -> list[dict[str, Any]]:
    """Return the accuracies of guessing, for a task's accuracy, as a chart marks them."""
    name = chance_field(field) if is_metric(field) else None
    known = [run.metrics.number(name) for run in chosen] if name is not None else []
    levels = sorted({chance for chance in known if chance is not None})
    return [chance_level(chance, f"chance {chance:.4g}") for chance in levels]


def differences(runs: Mapping[str, WatchedRun], query: Mapping[str, str]) -> dict[str, Any]:
    """Return in which settings the configs of runs differ, the values of each run, and whose config
    cannot be read."""
    chosen = _chosen(runs, query)
    known = [run for run in chosen if run.record.settings]
    found = differing_settings([Group(run.name, (run.record,)) for run in known])
    return {
        "runs": [run.name for run in known],
        "fields": {
            name: ["" if value is None else str(value) for value in values]
            for name, values in found.items()
        },
        "unknown": [run.name for run in chosen if run not in known],
    }


def diagnostics(run: WatchedRun) -> HeatMaps:
    """Return the heat maps of a run; no map, and the reason in words, where they cannot be had."""
    try:
        return read_heat_maps(run.folder)
    except (QuinticError, OSError) as error:
        return {"steps": [], "maps": [], "problem": str(error)}


def _members(chosen: list[WatchedRun], *, grouped: bool) -> list[tuple[str, list[WatchedRun]]]:
    """Return the runs that are one curve, with its name; a repetition of a seed counts once."""
    if not grouped:
        return [(run.name, [run]) for run in chosen]
    of_record = {run.record.path: run for run in chosen}
    return [
        (
            group.label if len(group.counted) > 1 else of_record[group.counted[0].path].name,
            [of_record[record.path] for record in group.counted],
        )
        for group in group_runs([run.record for run in chosen])
    ]


def _chosen(runs: Mapping[str, WatchedRun], query: Mapping[str, str]) -> list[WatchedRun]:
    return [runs[name] for name in query.get("runs", "").split(",") if name in runs]


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    try:
        value = float(query.get(name, default))
    except ValueError:
        value = math.nan
    if np.isnan(value) or (math.isinf(value) and name == "points"):
        raise BadQueryError(f"{name} {query[name][:40]!r}")
    return value
