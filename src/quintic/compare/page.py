"""The comparison as one self-contained page: no file beside it, no request to anywhere.

page.html draws with what pages share; this fills in the numbers.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from quintic.compare.comparison import Comparison
from quintic.compare.conclusions import conclusions
from quintic.compare.figure import AXIS_LABELS, caption, legend_text
from quintic.compare.record import AXES, Axis
from quintic.compare.table import differences_table, results_table
from quintic.compare.task_scores import tasks_table
from quintic.errors import counted
from quintic.pages.fill import html_items, html_table, script_json, write_filled

UNITS: dict[Axis, str] = {"tokens": "tokens", "steps": "steps", "seconds": "s", "flops": "FLOPs"}


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page; the file is replaced whole."""
    differences, tasks = differences_table(comparison), tasks_table(comparison.tasks)
    losses = results_table(comparison) if comparison.has_losses else None
    runs = sum(len(result.group.runs) for result in comparison.results)
    parts = {
        "TITLE": f"{counted(runs, 'run')} side by side",
        "DATA": script_json(_data(comparison)),
        "CAPTION": html.escape(caption(comparison)),
        "RESULTS": html_table("validation loss in nats per token", losses) if losses else "",
        "TASKS": html_table("scores on tasks", tasks) if tasks else "",
        "DIFFERENCES": html_table("what differs", differences) if differences else "",
        "NOTES": html_items(comparison.notes),
        "CONCLUSIONS": html_items(conclusions(comparison)),
    }
    write_filled("quintic.compare", parts, path)


def _data(comparison: Comparison) -> dict[str, Any]:
    known = [
        axis
        for axis in AXES
        if all(p.at(axis) is not None for result in comparison.results for p in result.curve)
    ]
    series = [
        {
            "label": result.group.label,
            "legend": legend_text(result),
            "x": {axis: [point.at(axis) for point in result.curve] for axis in known},
            "y": [point.mean for point in result.curve],
            "low": [p.low for p in result.curve] if len(result.group.counted) > 1 else None,
            "high": [p.high for p in result.curve] if len(result.group.counted) > 1 else None,
        }
        for result in comparison.results
        if not result.group.imported
    ]
    target = comparison.target
    return {
        "axis": comparison.axis,
        "axes": {axis: {"label": AXIS_LABELS[axis], "unit": UNITS[axis]} for axis in known},
        "levels": [] if target is None else [{"y": target, "text": f"target {target:g}"}],
        "series": series,
    }
