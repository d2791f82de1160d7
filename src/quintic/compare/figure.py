"""The comparison as a picture: validation loss against tokens, steps or seconds.

After Figure 1 of modded-nanogpt's README of October 2024. Colours are those of Okabe and Ito, which
colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/); line style and marker tell
the lines apart in black and white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintic.compare.comparison import Comparison, MeanPoint, Result
from quintic.compare.record import Axis
from quintic.compare.table import quantity
from quintic.files import replacing

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Without their yellow, which vanishes on paper."""
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 1.5), (7, 2, 1.5, 2), (10, 2.5))
"""Lengths of stroke and gap, in line widths; empty: a whole line."""
MARKERS = ("o", "s", "^", "D", "v", "X")

MOST_MARKERS = 12
AXIS_LABELS: dict[Axis, str] = {
    "tokens": "training tokens",
    "steps": "steps",
    "seconds": "seconds of training",
}


@dataclass(frozen=True)
class Style:
    """How one line differs from the others, three times over."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


def style(index: int) -> Style:
    """The style of a line; the first 210 are all different."""
    return Style(
        COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)]
    )


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the groups, each as the mean of its seeds in a band from the lowest to the highest.

    The file is replaced whole. The axis leaves out the first steps, where the loss falls from that
    of a model that knows nothing and would flatten everything that follows.
    """
    from matplotlib.figure import Figure  # slow to import, so only where it is used

    axis = comparison.axis
    rows = len(comparison.results)
    figure = Figure(figsize=(7.2, 4.6 + 0.22 * max(0, rows - 4)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, result in enumerate(comparison.results):
        _draw_line(axes, result, axis, index)
    if comparison.target is not None:
        axes.axhline(
            comparison.target,
            color="#444444",
            linewidth=1,
            linestyle=(0, (4, 4)),
            label=f"target {comparison.target:g}",
            zorder=1,
        )
    curves = [result.curve for result in comparison.results]
    low, high = loss_range(curves, axis, comparison.target)
    axes.set_ylim(low, high)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(
        lambda value, _: quantity(value, axis) if axis == "tokens" else f"{value:,.6g}"
    )
    axes.set(xlabel=AXIS_LABELS[axis], ylabel="validation loss (nats per token)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the axes, so that no line runs through it.
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=1 if any(len(legend_text(r)) > 36 for r in comparison.results) else 2,
        frameon=False,
        handlelength=4.5,
        title=caption(comparison) or None,
        title_fontsize="small",
    )
    with replacing(path) as file:
        figure.savefig(file, format="png")


def _draw_line(axes: Any, result: Result, axis: Axis, index: int) -> None:
    look = style(index)
    points = [(x, p) for p in result.curve if (x := p.at(axis)) is not None]
    xs = [x for x, _ in points]
    every = max(1, len(xs) // MOST_MARKERS)
    (line,) = axes.plot(
        xs,
        [p.mean for _, p in points],
        color=look.colour,
        linewidth=1.6,
        marker=look.marker,
        markersize=4.5,
        markevery=(index % every, every),  # beside, not upon those of a line close by
        label=_plain(legend_text(result)),
    )
    if look.dashes:
        line.set_dashes(look.dashes)
    if len(result.group.counted) > 1:
        axes.fill_between(
            xs,
            [p.low for _, p in points],
            [p.high for _, p in points],
            color=look.colour,
            alpha=0.18,
            linewidth=0,
        )


def caption(comparison: Comparison) -> str:
    """What the signs of a picture of groups stand for; empty where every group is one run."""
    if all(len(result.group.counted) == 1 for result in comparison.results):
        return ""
    return "mean of the runs ± its standard error; band from the lowest to the highest run"


def legend_text(result: Result) -> str:
    """Name, number of seeds and final loss of a group."""
    count = len(result.group.counted)
    name = result.group.label if count == 1 else f"{result.group.label}, {count} runs"
    if result.diverged:
        return f"{name}: {'' if count == 1 else f'{len(result.diverged)} '}diverged"
    if result.summary is None:
        return f"{name}: unfinished"
    error = "" if result.summary.error is None else f" ± {result.summary.error:.4f}"
    return f"{name}: {result.summary.mean:.4f}{error}"


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is: a dollar sign would begin a formula, what begins with an
    underscore would be left out of the legend, and bytes of a name that are no text would raise."""
    text = text.encode(errors="replace").decode().replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def loss_range(
    curves: Sequence[Sequence[MeanPoint]], axis: Axis, target: float | None
) -> tuple[float, float]:
    """Lowest and highest loss that a picture shows: all but the first twelfth of the longest line.

    A line that has nothing after that is shown whole.
    """
    ends = [curve[-1].at(axis) or 0.0 for curve in curves if curve]
    start = max(ends, default=0.0) / 12
    shown = [] if target is None else [target]
    for curve in curves:
        late = [p for p in curve if (p.at(axis) or 0.0) >= start]
        for point in late or curve:
            shown += [point.low, point.high]
    if not shown:
        return 0.0, 1.0
    margin = 0.05 * (max(shown) - min(shown)) or 0.05
    return min(shown) - margin, max(shown) + margin
