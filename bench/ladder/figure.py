"""The ladder as a picture: the final loss of every seed, rung by rung."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.ladder.climb import Rung
from quintic.files import replacing

KEPT, LEFT = "#0072B2", "#D55E00"
"""Of Okabe and Ito's colours; markers and the words below tell them apart too."""


def draw_ladder(rungs: Sequence[Rung], path: Path, unit: str = "nats per token") -> None:
    """Seeds as points, means as ticks, and the height of what is kept as a line through them."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(1.6 + 0.55 * len(rungs), 4.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    heights: list[float] = []  # of what is kept, from rung to rung
    for place, rung in enumerate(rungs):
        losses = [loss for loss in rung.losses.values() if loss is not None]
        if losses:
            colour, marker = (KEPT, "o") if rung.kept else (LEFT, "X")
            mean = statistics.fmean(losses)
            axes.plot([place] * len(losses), losses, marker, color=colour, markersize=5, alpha=0.7)
            axes.hlines(mean, place - 0.3, place + 0.3, colors=colour, linewidth=2)
            axes.annotate(
                f"{mean:.3f}",
                (place, max(losses)),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
            if rung.kept:
                heights.append(mean)
        if len(heights) <= place:
            heights.append(heights[-1])
    axes.step(range(len(heights)), heights, where="post", color=KEPT, linewidth=1, alpha=0.5)
    names = [rung.name if place == 0 else f"+ {rung.name}" for place, rung in enumerate(rungs)]
    axes.set_xticks(range(len(rungs)), names, rotation=38, ha="right", rotation_mode="anchor")
    axes.set_ylabel(f"final validation loss ({unit})")
    axes.margins(y=0.12)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        handles=[
            Line2D([], [], color=KEPT, marker="o", linestyle="", label="kept"),
            Line2D([], [], color=LEFT, marker="X", linestyle="", label="not kept"),
            Line2D([], [], color=KEPT, linewidth=1, alpha=0.5, label="mean of what is kept"),
        ],
        frameon=False,
        loc="upper right",
    )
    with replacing(path) as file:
        figure.savefig(file, format="png")
