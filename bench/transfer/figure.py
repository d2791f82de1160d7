"""The valleys of the learning rate as a picture: one panel a rule, one line a size."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.transfer.plan import Rule, Size
from bench.transfer.search import Curve
from quintic.figure import finish_axes, save_figure, style

SHOWN_ABOVE_BEST = 0.35
"""Nats: what is further up says nothing of where the valley is, and would flatten it."""


def draw_transfer(
    curves: Mapping[tuple[Rule, Size], Curve],
    seeds: Sequence[int],
    series: Mapping[str, Sequence[Size]],
    path: Path,
) -> None:
    """Draw the mean loss over seeds against the learning rate, and where each is lowest."""
    from matplotlib.figure import Figure

    rules = list(dict.fromkeys(rule for rule, _ in curves))
    figure = Figure(figsize=(3.6 * len(rules), 3.1 * len(series)), dpi=150, layout="constrained")
    panels = figure.subplots(len(series), len(rules), squeeze=False, sharey="row")
    for row, (name, sizes) in zip(panels, series.items(), strict=True):
        for axes, rule in zip(row, rules, strict=True):
            for index, size in enumerate(sizes):
                if not (curve := curves.get((rule, size), Curve())).losses:
                    continue
                look = style(index)
                means = {
                    power: statistics.fmean(losses.values())
                    for power, losses in sorted(curve.losses.items())
                }
                lowest = min(means.values())
                shown = {p: m for p, m in means.items() if m < lowest + SHOWN_ABOVE_BEST}
                axes.plot(
                    [rule.rate(power) for power in shown],
                    list(shown.values()),
                    color=look.colour,
                    dashes=look.dashes,
                    marker=look.marker,
                    markersize=4,
                    linewidth=1.2,
                    label=f"{getattr(size, name)}",
                )
                if (optimum := curve.optimum(seeds)) is not None:
                    axes.axvline(
                        rule.start * 2 ** optimum[0], color=look.colour, linewidth=0.8, alpha=0.5
                    )
            axes.set_xscale("log", base=2)
            axes.set_xlabel(f"{rule.field} ({rule.name})")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
            axes.tick_params(labelsize=7)
            finish_axes(axes)
        row[0].set_ylabel("final validation loss (nats per token)")
        if row[0].lines:
            row[0].legend(title=name, frameon=False, fontsize=8)
    save_figure(figure, path)
