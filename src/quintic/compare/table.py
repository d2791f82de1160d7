"""The results of a comparison as tables of text, for the terminal and the page."""

from __future__ import annotations

import json
from typing import Any

from quintic.compare.comparison import Comparison, GroupResult, sizes_differ
from quintic.compare.record import AXES, AXIS_NAMES, Axis
from quintic.compare.statistics import Summary
from quintic.console import Table, short_count
from quintic.errors import counted

UNKNOWN = "–"


def results_table(comparison: Comparison) -> Table:
    """Return a row for each group; a column that no group could fill is left out."""
    results = comparison.results
    columns: dict[str, list[str]] = {
        "": [result.group.label for result in results],
        "runs": [str(len(result.group.counted)) for result in results],
        "seeds": [_seeds(result) for result in results],
        "final loss": [_final_loss(result) for result in results],
    }
    # Of models of one size FLOPs say what tokens say.
    shows_flops = comparison.axis == "flops" or sizes_differ(results)
    if shows_flops:
        columns["FLOPs"] = [_or_unknown(_flops(result), "{:.3g}") for result in results]
    if comparison.target is not None:
        for axis in AXES:
            if axis != "flops" or shows_flops:
                name = f"{AXIS_NAMES[axis]} to {comparison.target:g}"
                columns[name] = [_to_target(result, axis) for result in results]
    columns["tokens/s"] = [_or_unknown(r.tokens_per_s, "{:,.0f}") for r in results]
    columns["peak memory"] = [_or_unknown(r.memory_gib, "{:.2f} GiB") for r in results]
    columns["optimizer share"] = [_or_unknown(r.optimizer_share, "{:.2%}") for r in results]
    columns = {name: cells for name, cells in columns.items() if set(cells) != {UNKNOWN}}
    return Table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def differences_table(comparison: Comparison) -> Table | None:
    """Return what differs between the configs, laid the way that has fewer columns; None where
    nothing does."""
    labels = [result.group.label for result in comparison.results]
    fields = list(comparison.settings)
    if not fields:
        return None
    cells = [[setting(value) for value in comparison.settings[name]] for name in fields]
    if len(fields) < len(labels):
        return Table(
            ["", *fields],
            [[label, *row] for label, row in zip(labels, zip(*cells, strict=True), strict=True)],
        )
    return Table(["", *labels], [[name, *row] for name, row in zip(fields, cells, strict=True)])


def quantity(value: float, axis: Axis) -> str:
    """Return a number of tokens, steps, seconds or FLOPs in a few characters."""
    if axis == "tokens":
        return short_count(value)
    if axis == "flops":
        return f"{value:.3g}"
    if axis == "steps":
        return f"{value:,.0f}"
    return f"{value:,.1f} s" if value < 1000 else f"{value:,.0f} s"


def setting(value: Any) -> str:
    """Return a value of the config as the config file has it; what no config tells is unknown."""
    return UNKNOWN if value is None else value if isinstance(value, str) else json.dumps(value)


def _final_loss(result: GroupResult) -> str:
    if result.group.imported:
        return UNKNOWN
    if diverged := len(result.group.diverged):
        runs = len(result.group.counted)
        return "diverged" if diverged == runs else f"{diverged} of {runs} diverged"
    return "unfinished" if result.summary is None else loss_text(result.summary)


def loss_text(summary: Summary) -> str:
    """Return a mean loss and, where there is one, its standard error."""
    error = "" if summary.error is None else f" ± {summary.error:.4f}"
    return f"{summary.mean:.4f}{error}"


def _flops(result: GroupResult) -> float | None:
    """Return the operations of training up to the last loss that all runs have, in the mean."""
    return result.curve[-1].flops if result.curve else None


def _seeds(result: GroupResult) -> str:
    seeds = [str(run.seed) for run in result.group.counted if run.seed is not None]
    return ", ".join(seeds) or UNKNOWN


def _to_target(result: GroupResult, axis: Axis) -> str:
    reach = result.to_target.get(axis)
    if reach is None or result.group.imported:
        return UNKNOWN
    if reach.mean is None:
        return f"{len(reach.values)} of {counted(reach.runs, 'run')}" if reach.values else "never"
    times = "" if reach.ratio is None else f" ({reach.ratio.value:.3g}×)"
    return f"{quantity(reach.mean, axis)}{times}"


def _or_unknown(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)
