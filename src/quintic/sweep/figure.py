"""sweep.png: the final loss against each varied value, a panel for each field."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quintic.figure import Style, finish_axes, save_figure, style
from quintic.sweep.plan import short_name, value_text
from quintic.sweep.summary import Combination, SweepSummary, is_number

MOST_STYLES = 6
"""Lines that a reader can still tell apart; of more, only that of the best is drawn out."""
GREY = Style("#9a9a9a", (), ".")
PANEL_IN, ONE_PANEL_IN, LEGEND_LINE_IN = 3.8, 6.4, 0.19
LEGEND_TOP = -0.22
"""Top of a legend, under the labels of the axis, in heights of a panel."""
LEGEND_LETTERS = 40
"""Most letters in a line of a legend."""
BEST_COLOUR = "#D55E00"
MARKS = {"diverged": "x", "above the scale": "^"}
"""Marks of what has no place in a panel, at its top."""
MARKS_HEIGHT = 0.965


def draw_sweep(summary: SweepSummary, path: Path) -> None:
    """Draw what is known; the file is replaced whole.

    In each panel the combinations that share all other values are a line; those of a random search,
    which share none, are points. Bars are the standard error over seeds.
    """
    from matplotlib.figure import Figure  # slow to import, so only where it is used
    from matplotlib.lines import Line2D

    fields = summary.plan.fields
    columns = {1: 1, 2: 2, 4: 2}.get(len(fields), 3)
    rows = -(-len(fields) // columns)
    limits = loss_limits([loss.mean for c in summary.ranked if (loss := c.loss) is not None])
    figure = Figure(dpi=150, layout="constrained")
    panels: list[Any] = []
    entries = 0
    for place, field in enumerate(fields):
        axes = figure.add_subplot(rows, columns, place + 1, sharey=panels[0] if panels else None)
        panels.append(axes)
        _draw_panel(axes, summary, field, limits)
        if place % columns == 0:
            axes.set_ylabel("final validation loss (nats per token)")
        keys = list(zip(*axes.get_legend_handles_labels(), strict=True))
        keys.sort(key=lambda key: isinstance(key[0], Line2D))  # lines with error bars, then marks
        if keys:
            labels = ["\n".join(textwrap.wrap(label, LEGEND_LETTERS)) for _, label in keys]
            axes.legend(
                [handle for handle, _ in keys],
                labels,
                loc="upper center",
                bbox_to_anchor=(0.5, LEGEND_TOP),  # where no line runs through it
                frameon=False,
                fontsize="small",
                handlelength=4,
            )
            entries = max(entries, sum(1 + label.count("\n") for label in labels))
    legend_in = LEGEND_LINE_IN * (entries + 1)
    width = ONE_PANEL_IN if columns == 1 else columns * PANEL_IN * 1.15
    figure.set_size_inches(width, rows * (PANEL_IN + legend_in))
    save_figure(figure, path)


def loss_limits(means: Sequence[float]) -> tuple[float, float] | None:
    """Return the lowest and highest loss that are shown: those of all, unless a few so far above
    the others would flatten what matters; there is room above for the marks of divergence. None
    where there is no loss."""
    if not means:
        return None
    low, ordered = min(means), sorted(means)
    upper_half = ordered[(3 * (len(ordered) - 1)) // 4]
    spread = max(upper_half - low, 0.02 * abs(low), 1e-4)
    high = min(ordered[-1], low + 3 * spread)
    room = max(high - low, spread / 3)
    return low - 0.08 * room, high + 0.25 * room


def _draw_panel(
    axes: Any, summary: SweepSummary, field: str, limits: tuple[float, float] | None
) -> None:
    if limits is None:
        axes.set_yticks([])
    else:
        axes.set_ylim(*limits)
    highest = math.inf if limits is None else limits[1]
    place = _axis(axes, field, [c.values[field] for c in summary.ranked])
    lines = _lines(summary, field)
    best = summary.best
    named = 1 < len(lines) <= MOST_STYLES
    alone = summary.plan.draws is not None or len(summary.plan.fields) == 1
    for index, (others, line) in enumerate(lines.items()):
        best_one = best is not None and best in line
        look = style(index) if named and not alone else style(0) if best_one or alone else GREY
        label = ", ".join(others) if named and not alone else None
        if not (named or alone) and best_one:
            label = "through the best: " + ", ".join(others)
        points = [(place(c.values[field]), c) for c in line]
        if any(c.losses for c in line):
            _draw_line(axes, points, look, label, joined=summary.plan.draws is None)
            label = None  # else the crosses have it
        # Beside each other, where several diverge at one value.
        height = MARKS_HEIGHT - 0.035 * (index % 5)
        for x, combination in points:
            if kind := _mark(combination, highest):
                axes.plot(
                    x,
                    height,
                    marker=MARKS[kind],
                    markersize=7,
                    markeredgewidth=1.8,
                    color=look.colour,
                    linestyle="",
                    label=label,
                    transform=axes.get_xaxis_transform(),  # heights are shares of the panel's
                )
                label = None
    for kind in sorted({kind for c in summary.ranked if (kind := _mark(c, highest))}):
        axes.plot([], [], linestyle="", marker=MARKS[kind], color="#444444", label=kind)
    if best is not None and best.loss is not None:
        axes.plot(
            [place(best.values[field])],
            [best.loss.mean],
            linestyle="",
            marker="o",
            markersize=13,
            markerfacecolor="none",
            markeredgewidth=1.8,
            color=BEST_COLOUR,
            label=f"best, {best.loss.mean:.4f} at {value_text(best.values[field])}",
        )
    finish_axes(axes)


def _mark(combination: Combination, highest: float) -> str | None:
    """Return the one of MARKS that a combination gets, None where its loss has a place."""
    if combination.count("diverged"):
        return "diverged"
    loss = combination.loss
    return "above the scale" if loss is not None and loss.mean > highest else None


def _lines(summary: SweepSummary, field: str) -> dict[tuple[str, ...], list[Combination]]:
    """Return the combinations by the values of all other fields, each line in the plan's order."""
    lines: dict[tuple[str, ...], list[Combination]] = {}
    order = {run.name: place for place, run in enumerate(summary.plan.runs)}
    for combination in sorted(summary.ranked, key=lambda c: order[c.runs[0].name]):
        others = tuple(
            f"{short_name(name)} {value_text(value)}"
            for name, value in combination.values.items()
            if name != field
        )
        lines.setdefault(others, []).append(combination)
    return lines


def _draw_line(
    axes: Any,
    points: Sequence[tuple[float, Combination]],
    look: Style,
    label: str | None,
    *,
    joined: bool,
) -> None:
    """Draw a mean with its standard error at every place that has one; there is one at least."""
    known = sorted(
        ((x, loss.mean, loss.error) for x, c in points if (loss := c.loss) is not None),
        key=lambda point: point[0],
    )
    xs, means, errors = zip(*known, strict=True)
    line, *_ = axes.errorbar(
        xs,
        means,
        yerr=[math.nan if error is None else error for error in errors],
        color=look.colour,
        marker=look.marker,
        markersize=5,
        linewidth=1.5,
        linestyle="-" if joined else "",
        capsize=3,
        label=label,
        zorder=2 if look is GREY else 3,
    )
    if look.dashes and joined:
        line.set_dashes(look.dashes)


def smallest_gap(places: Sequence[float]) -> float:
    """Return the smallest gap between neighbours, as a share of the distance from the first to the
    last place."""
    ordered = sorted(places)
    span = ordered[-1] - ordered[0] or 1.0
    gaps = (after - before for before, after in itertools.pairwise(ordered))
    return min((gap / span for gap in gaps), default=1.0)


def _axis(axes: Any, field: str, values: Sequence[Any]) -> Callable[[Any], float]:
    """Prepare the axis of a field; returns the place of a value on it.

    Numbers lie where they are, on a logarithmic axis where they span a decade; anything else, and
    numbers beside None, stand side by side.
    """
    axes.set_xlabel(field)
    distinct = list(dict.fromkeys(values))
    if not all(map(is_number, distinct)):
        distinct.sort(key=lambda v: (is_number(v), v if is_number(v) else 0, value_text(v)))
        axes.set_xticks(range(len(distinct)), [value_text(v) for v in distinct])
        axes.set_xlim(-0.5, len(distinct) - 0.5)
        return distinct.index
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

    log = min(distinct) > 0 and max(distinct) / min(distinct) >= 10
    if log:
        axes.set_xscale("log")
    gap = smallest_gap([math.log(v) if log else v for v in distinct])
    named = gap > 0.09
    # Of many decades LogLocator leaves some out, and then has no ticks at all but for subs of 1.
    subs = (1, 2, 5) if log and max(distinct) / min(distinct) < 1e4 else (1,)
    locator = LogLocator(subs=subs) if log else MaxNLocator(5)
    axes.xaxis.set_major_locator(FixedLocator(distinct) if named else locator)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    if gap < 0.2 and (named or log):
        axes.tick_params(axis="x", rotation=45)
    axes.margins(x=0.08)
    return float
