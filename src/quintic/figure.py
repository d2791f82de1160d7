"""`loss.png`, the losses and scores of a run against tokens; and what all figures have in common.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart
(https://jfly.uni-koeln.de/color/); line style and marker tell lines apart in black and white.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintic.files import replacing
from quintic.metrics_file import MetricsRecord
from quintic.tasks.curves import ScoreCurve, first_of_each_task, score_curves

TRAIN_COLOUR, VALIDATION_COLOUR = "#8da9c4", "#c8553d"

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Those of Okabe and Ito without their yellow, which vanishes on paper."""
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 1.5), (7, 2, 1.5, 2), (10, 2.5))
"""Lengths of stroke and gap, in line widths; empty: a whole line."""
MARKERS = ("o", "s", "^", "D", "v", "X")


@dataclass(frozen=True)
class Style:
    """Three ways, each enough, in which one line differs from the others."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


def style(index: int) -> Style:
    """Return the style of a line; the first 210 are all different."""
    return Style(
        COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)]
    )


def finish_axes(axes: Any) -> None:
    """Give axes a faint grid and no frame."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Any, path: Path) -> None:
    """Save a figure as a PNG; the file is replaced whole."""
    with replacing(path) as file:
        figure.savefig(file, format="png")


def draw_loss(records: Sequence[MetricsRecord], path: Path, title: str) -> None:
    """Draw the records of a run; the file is replaced whole.

    The training loss is one batch's and therefore noisy; its running mean is drawn over it. The
    axis leaves the first steps out where they would flatten everything that follows. Where tasks
    were scored, a second panel has the accuracy of each.
    """
    from matplotlib.figure import Figure  # slow to import, so only where it is used
    from matplotlib.ticker import EngFormatter

    train = [(r["tokens"], r["train_loss"]) for r in records if "train_loss" in r]
    validation = [(r["tokens"], r["val_loss"]) for r in records if "val_loss" in r]
    scores = first_of_each_task(score_curves(records))
    figure = Figure(figsize=(7.2, 6.4 if scores else 4.2), dpi=150, layout="constrained")
    axes, *below = figure.subplots(
        1 + bool(scores), sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + bool(scores)]
    )[:, 0]
    if train:
        tokens, losses = zip(*train, strict=True)
        axes.plot(tokens, losses, color=TRAIN_COLOUR, linewidth=0.8, alpha=0.5)
        axes.plot(
            tokens,
            running_mean(losses),
            color=TRAIN_COLOUR,
            linewidth=1.6,
            label="train, running mean",
        )
    if validation:
        tokens, losses = zip(*validation, strict=True)
        label = f"validation, {losses[-1]:.4f} at the end"
        axes.plot(tokens, losses, color=VALIDATION_COLOUR, marker="o", markersize=3.5, label=label)
    values = [loss for _, loss in train + validation if math.isfinite(loss)]
    if values:
        settled = sorted(values)[int(0.95 * (len(values) - 1))]
        axes.set_ylim(min(values) - 0.1, settled + 0.5)
        axes.legend(frameon=False)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(ylabel="loss (nats per token)")
    axes.set_title(title, parse_math=False)  # a folder's name may have dollar signs
    finish_axes(axes)
    for panel in below:
        _draw_scores(panel, scores)
        figure.legend(
            *panel.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
        )
    [axes, *below][-1].set_xlabel("tokens")
    save_figure(figure, path)


def _draw_scores(axes: Any, curves: Sequence[ScoreCurve]) -> None:
    """Draw a line for each task, in a band of one standard error to either side; dotted, the
    accuracy of guessing."""
    for index, curve in enumerate(curves):
        look = style(index)
        tokens = [record["tokens"] for record in curve.records]
        axes.fill_between(tokens, *curve.band, color=look.colour, alpha=0.18, linewidth=0)
        if curve.chance is not None:
            axes.axhline(curve.chance, color=look.colour, linewidth=0.9, linestyle=":")
        axes.plot(
            tokens,
            curve.values,
            color=look.colour,
            dashes=look.dashes,
            marker=look.marker,
            markersize=3.5,
            linewidth=1.3,
            label=f"{curve.name} {curve.last}",
        )
    axes.set(ylabel="share right")
    finish_axes(axes)


def running_mean(values: Sequence[float], share: float = 0.04) -> list[float]:
    """Return the mean over the last `share` of all values, at least one, at each place."""
    window = max(1, round(share * len(values)))
    sums = [0.0, *itertools.accumulate(values)]
    starts = [max(0, end - window) for end in range(len(sums))]
    return [(sums[end] - sums[starts[end]]) / (end - starts[end]) for end in range(1, len(sums))]
