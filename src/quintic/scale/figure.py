"""A fitted law as a picture: profiles of equal FLOPs, and the loss against FLOPs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quintic.console import short_count
from quintic.figure import finish_axes, save_figure, style
from quintic.scale.forecast import NEAR_BUDGET, Curve, Prediction
from quintic.scale.scaling import Scaling
from quintic.scale.solver import Floats

RUN_COLOUR = "#9a9a9a"
LOSS = "validation loss (nats per token)"


def draw_scaling(scaling: Scaling, path: Path) -> None:
    """Draw what the law says with its intervals, the runs, and what is foreseen; the file is
    replaced whole.

    In the left panel a run stands beside the profile of about its FLOPs, where there is one.
    """
    from matplotlib.figure import Figure  # slow to import, so only where it is used

    panels = 2 if scaling.profiles else 1
    figure = Figure(figsize=(5.4 * panels + 1.2, 4.6), dpi=150, layout="constrained")
    *left, right = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    runs = scaling.fits[0].observations
    for axes in left:
        _draw_profiles(axes, scaling)
    right.plot(
        runs.flops_R, runs.loss_R, ".", color=RUN_COLOUR, label=f"{len(runs)} runs", zorder=2
    )
    if (curve := scaling.frontier) is not None:
        _draw_curve(right, curve.flops, curve, 0, frontier_label(scaling))
    for place, found in enumerate(first_predictions(scaling), start=1):
        look = style(place)
        bars = [[found.run.estimate - found.run.low], [found.run.high - found.run.estimate]]
        right.errorbar(
            [found.place["flops"]],
            [found.run.estimate],
            yerr=bars,
            fmt=look.marker,
            color=look.colour,
            capsize=3,
            label=prediction_label(found).replace("$", r"\$"),
            zorder=4,
        )
    right.set(xlabel="FLOPs")
    for axes in (*left, right):
        axes.set_xscale("log")
        axes.minorticks_off()
        finish_axes(axes)
        axes.legend(frameon=False, fontsize="small")
    for axes in left:  # once the axis is logarithmic, which brings a formatter of its own
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    first = (*left, right)[0]
    first.set_ylabel(LOSS)
    first.set_ylim(*loss_range(scaling))
    save_figure(figure, path)


def frontier_label(scaling: Scaling) -> str:
    """Return what the curve over FLOPs is of."""
    return "best size by the law" if scaling.profiles else "law on the line of the runs"


def first_predictions(scaling: Scaling) -> list[Prediction]:
    """Return what is foreseen by the first way of counting, which the curves are of."""
    return [found for found in scaling.predictions if found.count == scaling.fits[0].count]


def prediction_label(found: Prediction) -> str:
    """Return what a prediction is called, and that it is none where the fit does not carry it."""
    return found.label if found.carried else f"{found.label}, not carried by the fit"


def runs_beside(scaling: Scaling, curve: Curve) -> tuple[Floats, Floats]:
    """Return parameters, rising, and losses of the runs of about the budget of a profile."""
    runs = scaling.fits[0].observations
    n_R = runs.parameters(scaling.fits[0].count)
    order = np.argsort(n_R, kind="stable")
    near = order[np.abs(np.log(runs.flops_R[order] / curve.flops[0])) < NEAR_BUDGET]
    return n_R[near], runs.loss_R[near]


def loss_range(scaling: Scaling) -> tuple[float, float]:
    """Return the losses that a picture shows: those of the runs, the frontier and the intervals of
    what is foreseen."""
    shown = [*scaling.fits[0].observations.loss_R]
    if scaling.frontier is not None:
        shown += scaling.frontier.loss
    for found in first_predictions(scaling):
        shown += [found.run.low, found.run.high]
    margin = 0.05 * (max(shown) - min(shown)) or 0.05
    return float(min(shown) - margin), float(max(shown) + margin)


def _draw_profiles(axes: Any, scaling: Scaling) -> None:
    for index, curve in enumerate(scaling.profiles):
        look = style(index)
        _draw_curve(axes, curve.parameters, curve, index, f"{curve.flops[0]:.2g} FLOPs")
        lowest = int(np.argmin(curve.loss))
        axes.plot(
            curve.parameters[lowest], curve.loss[lowest], look.marker, color=look.colour, zorder=4
        )
        axes.plot(*runs_beside(scaling, curve), ".", color=look.colour, alpha=0.5)
    axes.set(xlabel="parameters")


def _draw_curve(axes: Any, x: tuple[float, ...], curve: Curve, index: int, label: str) -> None:
    look = style(index)
    axes.plot(x, curve.loss, color=look.colour, dashes=look.dashes, linewidth=1.6, label=label)
    axes.fill_between(x, curve.low, curve.high, color=look.colour, alpha=0.18, linewidth=0)
