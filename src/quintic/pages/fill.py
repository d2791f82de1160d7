"""Pages made of a template: whatever comes from names of folders or configs is data for it, never
markup."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintic.files import replacing

if TYPE_CHECKING:
    from quintic.console import Table  # imports rich, which a page does without


def shared_part(name: str) -> str:
    """Return the text of a file that pages share, such as chart.js."""
    return resources.files("quintic.pages").joinpath(name).read_text(encoding="utf-8")


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Return a template with each {{NAME}} replaced by the part of that name, which is markup, a
    style sheet, a script or `script_json` already; STYLE, CONTROLS, CHART and HEATMAP are the
    shared ones.

    In one pass over the template, so that what is filled in is never filled in again.
    """
    shared = {
        "STYLE": "style.css",
        "CONTROLS": "controls.html",
        "CHART": "chart.js",
        "HEATMAP": "heatmap.js",
    }

    def part(found: re.Match[str]) -> str:
        name = found[1]
        return shared_part(shared[name]) if name in shared else parts[name]

    return re.sub(r"\{\{(\w+)\}\}", part, template)


def write_filled(package: str, parts: Mapping[str, str], path: Path) -> None:
    """Write the page.html of a package, filled with its parts; the file is replaced whole."""
    template = resources.files(package).joinpath("page.html").read_text(encoding="utf-8")
    page = fill(template, parts)
    with replacing(path) as file:
        file.write(page.encode(errors="replace"))  # a name of a folder may be no text


def script_json(value: Any) -> str:
    """Return JSON that ends no script element, whatever the strings in it say; raises `ValueError`
    for a number that is not finite, which JSON has none of."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def html_items(texts: Iterable[str]) -> str:
    """Return texts as the items of a list, as markup."""
    return "".join(f"<li>{html.escape(text)}</li>" for text in texts)


def html_table(caption: str, table: Table) -> str:
    """Return a table of texts as markup; the first cell of each row is its header."""
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
