"""A fitted law as one self-contained page: no file beside it, no request to anywhere.

page.html draws with what pages share; this fills in the numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quintic.errors import counted
from quintic.pages.fill import html_items, html_table, script_json, write_filled
from quintic.scale.conclusions import conclusions
from quintic.scale.figure import (
    first_predictions,
    frontier_label,
    prediction_label,
    runs_beside,
)
from quintic.scale.forecast import Curve
from quintic.scale.scaling import Scaling
from quintic.scale.table import tables


def write_page(scaling: Scaling, path: Path) -> None:
    """Write the page; the file is replaced whole."""
    runs = len(scaling.fits[0].observations)
    parts = {
        "TITLE": f"A law of the loss, fitted to {counted(runs, 'run')}",
        "DATA": script_json({"flops": _over_flops(scaling), "profiles": _profiles(scaling)}),
        "TABLES": "".join(html_table(title, table) for title, table in tables(scaling)),
        "NOTES": html_items(scaling.notes),
        "CONCLUSIONS": html_items(conclusions(scaling)),
    }
    write_filled("quintic.scale", parts, path)


def _over_flops(scaling: Scaling) -> list[dict[str, Any]]:
    """Return the series of the chart of loss against FLOPs."""
    runs, curve = scaling.fits[0].observations, scaling.frontier
    order = np.argsort(runs.flops_R, kind="stable")
    return [
        *([] if curve is None else [_line(frontier_label(scaling), curve.flops, curve)]),
        _dots("runs", 1, runs.flops_R[order].tolist(), runs.loss_R[order].tolist()),
        *(
            {
                **_dots(prediction_label(one), place, [one.place["flops"]], [one.run.estimate]),
                "low": [one.run.low],
                "high": [one.run.high],
            }
            for place, one in enumerate(first_predictions(scaling), start=2)
        ),
    ]


def _profiles(scaling: Scaling) -> list[dict[str, Any]]:
    """Return the series of the chart of loss against parameters at equal FLOPs."""
    series = []
    for index, curve in enumerate(scaling.profiles):
        label = f"{curve.flops[0]:.2g} FLOPs"
        series.append({**_line(label, curve.parameters, curve), "index": index})
        sizes, losses = runs_beside(scaling, curve)
        if len(sizes):
            series.append(_dots(f"runs near {label}", index, sizes.tolist(), losses.tolist()))
    return series


def _line(label: str, x: tuple[float, ...], curve: Curve) -> dict[str, Any]:
    return {"label": label, "x": {"x": x}, "y": curve.loss, "low": curve.low, "high": curve.high}


def _dots(label: str, index: int, x: list[float], y: list[float]) -> dict[str, Any]:
    return {"label": label, "index": index, "x": {"x": x}, "y": y, "dots": True}
