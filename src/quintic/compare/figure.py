"""The comparison as a picture: validation loss against tokens, steps, seconds or FLOPs.

After Figure 1 of modded-nanogpt's README of October 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quintic.compare.comparison import Comparison, GroupResult, MeanLoss
from quintic.compare.record import Axis
from quintic.compare.table import loss_text, quantity
from quintic.figure import finish_axes, save_figure, style

MOST_MARKERS = 12
AXIS_LABELS: dict[Axis, str] = {
    "tokens": "training tokens",
    "steps": "steps",
    "seconds": "seconds of training",
    "flops": "floating-point operations of training",
}


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
    axes.set_ylim(loss_range([r.curve for r in comparison.results], axis, comparison.target))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(
        lambda value, _: quantity(value, axis) if axis in ("tokens", "flops") else f"{value:,.6g}"
    )
    axes.set(xlabel=AXIS_LABELS[axis], ylabel="validation loss (nats per token)")
    finish_axes(axes)
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
    save_figure(figure, path)


def _draw_line(axes: Any, result: GroupResult, axis: Axis, index: int) -> None:
    look = style(index)
    points = [(x, p) for p in result.curve if (x := p.at(axis)) is not None]
    xs = [x for x, _ in points]
    every = max(1, len(xs) // MOST_MARKERS)
    axes.plot(
        xs,
        [p.mean for _, p in points],
        color=look.colour,
        dashes=look.dashes,
        linewidth=1.6,
        marker=look.marker,
        markersize=4.5,
        markevery=(index % every, every),  # beside, not upon those of a line close by
        label=_plain(legend_text(result)),
    )
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
    """Return what the signs of a picture stand for; empty where every group is one run."""
    if all(len(result.group.counted) == 1 for result in comparison.results):
        return ""
    return "mean of the runs ± its standard error; band from the lowest to the highest run"


def legend_text(result: GroupResult) -> str:
    """Return name, number of seeds and final loss of a group."""
    count = len(result.group.counted)
    name = result.group.label if count == 1 else f"{result.group.label}, {count} runs"
    if diverged := len(result.group.diverged):
        return f"{name}: {'' if count == 1 else f'{diverged} '}diverged"
    if result.group.imported:
        return f"{name}: no losses"
    return f"{name}: {'unfinished' if result.summary is None else loss_text(result.summary)}"


def _plain(text: str) -> str:
    """Return a text so that matplotlib takes it as it is: a dollar sign would begin a formula, what
    begins with an underscore would be left out of the legend, and bytes that are no text raise."""
    text = text.encode(errors="replace").decode().replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def loss_range(
    curves: Sequence[Sequence[MeanLoss]], axis: Axis, target: float | None
) -> tuple[float, float]:
    """Return the lowest and highest loss that a picture shows: all but the first twelfth of the
    longest line. A line that has nothing after that is shown whole."""
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
