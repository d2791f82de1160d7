"""The comparison as one self-contained page: no file beside it, no request to anywhere.

page.html draws; this fills in the numbers. Whatever comes from names of folders or configs is data
for it, never markup.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from quintic.compare.comparison import Comparison
from quintic.compare.conclusions import conclusions
from quintic.compare.figure import AXIS_LABELS, caption, legend_text
from quintic.compare.record import AXES
from quintic.compare.table import differences_table, results_table
from quintic.compare.task_scores import tasks_table
from quintic.console import Table
from quintic.figure import style
from quintic.files import replacing

TEMPLATE = "page.html"


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page; the file is replaced whole."""
    template = resources.files("quintic.compare").joinpath(TEMPLATE).read_text(encoding="utf-8")
    differences, tasks = differences_table(comparison), tasks_table(comparison.tasks)
    parts = {
        "DATA": _script_json(_data(comparison)),
        "CAPTION": html.escape(caption(comparison)),
        "RESULTS": _table("validation loss in nats per token", results_table(comparison)),
        "TASKS": _table("scores on tasks", tasks) if tasks else "",
        "DIFFERENCES": _table("what differs", differences) if differences else "",
        "NOTES": "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes),
        "CONCLUSIONS": "".join(f"<li>{html.escape(text)}</li>" for text in conclusions(comparison)),
    }
    # In one pass over the template, so that what is filled in is never filled in again.
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
    with replacing(path) as file:
        file.write(page.encode(errors="replace"))  # a name of a folder may be no text


def _data(comparison: Comparison) -> dict[str, Any]:
    groups = [
        {
            "label": result.group.label,
            "legend": legend_text(result),
            **asdict(style(index)),
            "band": len(result.group.counted) > 1,
            "points": [asdict(point) for point in result.curve],
        }
        for index, result in enumerate(comparison.results)
    ]
    known = [
        axis
        for axis in AXES
        if all(p.at(axis) is not None for result in comparison.results for p in result.curve)
    ]
    return {
        "axis": comparison.axis,
        "axes": {axis: AXIS_LABELS[axis] for axis in known},
        "target": comparison.target,
        "groups": groups,
    }


def _script_json(value: Any) -> str:
    """Return JSON that ends no script element, whatever the strings in it say."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _table(caption: str, table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
    rows = (
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in table.rows
    )
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
