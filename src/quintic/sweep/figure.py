"""sweep.png: the final loss against each varied value, a panel for each field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quintic.compare.figure import Style, style
from quintic.files import replacing
from quintic.sweep.plan import short_name, value_text
from quintic.sweep.summary import Combination, Found, is_number

MOST_STYLES = 6
"""Lines that a reader can still tell apart; of more, only that of the best is drawn out."""
GREY = Style("#9a9a9a", (), ".")
BEST_COLOUR = "#D55E00"
DIVERGED_HEIGHT = 0.965
"""Of the panel: a run that diverged has no loss."""


def draw_sweep(found: Found, path: Path) -> None:
    """Draw what is known; the file is replaced whole.

    In each panel the combinations that share all other values are a line; those of a random search,
    which share none, are points. Bars are the standard error over seeds.
    """
    from matplotlib.figure import Figure  # slow to import, so only where it is used

    fields = found.plan.fields
    columns = min(3, len(fields))
    rows = -(-len(fields) // columns)
    width = 6.4 if columns == 1 else 4.4 * columns
    figure = Figure(figsize=(width, 4.4 * rows), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes in panels[len(fields) :]:
        axes.remove()
    for place, (field, axes) in enumerate(zip(fields, panels, strict=False)):
        _draw_panel(axes, found, field)
        if place % columns == 0:
            axes.set_ylabel("final validation loss (nats per token)")
    limits = loss_limits([loss.mean for c in found.ranked if (loss := c.loss) is not None])
    if limits is not None:
        panels[0].set_ylim(*limits)
    else:
        panels[0].set_yticks([])
    with replacing(path) as file:
        figure.savefig(file, format="png")


def loss_limits(means: Sequence[float]) -> tuple[float, float] | None:
    """The losses that are shown: all of them, unless a few so far above the others would flatten
    what matters; there is room above for the marks of divergence. None where there is no loss."""
    if not means:
        return None
    low, ordered = min(means), sorted(means)
    upper_half = ordered[(3 * (len(ordered) - 1)) // 4]
    spread = max(upper_half - low, 0.02 * abs(low), 1e-4)
    high = min(ordered[-1], low + 3 * spread)
    return low - 0.08 * (high - low), high + 0.16 * max(high - low, spread / 3)


def _draw_panel(axes: Any, found: Found, field: str) -> None:
    place = _axis(axes, field, [c.values[field] for c in found.ranked])
    lines = _lines(found, field)
    best = found.best
    named = 1 < len(lines) <= MOST_STYLES
    alone = found.plan.draws is not None or len(found.plan.fields) == 1
    for index, (others, line) in enumerate(lines.items()):
        best_one = best is not None and best in line
        look = style(index) if named and not alone else style(0) if best_one or alone else GREY
        label = ", ".join(others) if named and not alone else None
        if not (named or alone) and best_one:
            label = "through the best: " + ", ".join(others)
        points = [(place(c.values[field]), c) for c in line]
        _draw_line(axes, points, look, label, joined=found.plan.draws is None)
        gone = [x for x, c in points if c.count("diverged")]
        # Side by side rather than upon each other, where several diverge at one value.
        height = DIVERGED_HEIGHT - 0.035 * (index % 5)
        axes.plot(
            gone,
            [height] * len(gone),
            linestyle="",
            marker="x",
            markersize=7,
            markeredgewidth=1.8,
            color=look.colour,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
    if any(c.count("diverged") for c in found.ranked):
        axes.plot([], [], linestyle="", marker="x", color="#444444", label="diverged")
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
    if axes.get_legend_handles_labels()[0]:
        # Below the axes, so that no line runs through it.
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=1 if len(found.plan.fields) > 2 else 2,
            frameon=False,
            fontsize="small",
            handlelength=4,
        )
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(found: Found, field: str) -> dict[tuple[str, ...], list[Combination]]:
    """The combinations by the values of all other fields, each line in the order of the plan."""
    lines: dict[tuple[str, ...], list[Combination]] = {}
    order = {run.name: place for place, run in enumerate(found.plan.runs)}
    for combination in sorted(found.ranked, key=lambda c: order[c.runs[0].name]):
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
    """A mean with its standard error at every place that has one."""
    known = sorted(
        ((x, loss.mean, loss.error) for x, c in points if (loss := c.loss) is not None),
        key=lambda point: point[0],
    )
    if not known:
        return
    xs, means, errors = zip(*known, strict=True)
    line, *_ = axes.errorbar(
        xs,
        means,
        yerr=[0.0 if error is None else error for error in errors],
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
    if min(distinct) > 0 and max(distinct) / min(distinct) >= 10:
        axes.set_xscale("log")
    if len(distinct) <= 8:
        axes.set_xticks(distinct, [f"{v:g}" for v in distinct])
        axes.minorticks_off()
        if sum(len(f"{v:g}") for v in distinct) > 24:
            axes.tick_params(axis="x", rotation=45)
    axes.margins(x=0.08)
    return float
