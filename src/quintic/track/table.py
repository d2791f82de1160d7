"""The list of records: a table for the console, the same in Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, shorten

from quintic.console import Table
from quintic.figure import COLOURS, finish_axes, save_figure
from quintic.track.record import Record
from quintic.track.verdict import p_text

HEADER = ["record", "time ratio", "bits per byte", "seeds", "p", "commit"]
LINE = 96
"""Characters of a line in which a console tells what was changed, as wide as the table is."""


def records_table(records: Sequence[Record]) -> Table:
    """Return a row of figures for each record, oldest first."""
    return Table(
        HEADER,
        [
            [
                record.name,
                record.interval,
                " / ".join(f"{value:.4f}" for value in record.bits_per_byte),
                str(record.seeds),
                p_text(record.worst_p),
                (record.commit or f"release {record.environment['quintic']}")[:9],
            ]
            for record in records
        ],
    )


def _hardware(record: Record) -> str:
    return f"{record.environment['device']}, {record.reference_median_s:.0f} s the reference"


def remark(record: Record) -> str:
    """Return what a record changed and where it ran, in lines for a console."""
    text = f"{record.name}: {record.changed}; {_hardware(record)}"
    return fill(text, LINE, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def markdown(records: Sequence[Record]) -> str:
    """Return the table and the figure as docs/track.md has them; a line that says so where there is
    no record."""
    if not records:
        return "No record has been entered yet."
    header = [*HEADER, "changed", "hardware"]
    lines = [header, ["---"] * len(header)]
    for record, row in zip(records, records_table(records).rows, strict=True):
        remarks = [record.changed, _hardware(record)]
        cells = [cell.replace("|", "\\|") for cell in (*row, *remarks)]
        lines.append([f"[{row[0]}](../src/quintic/track/records/{row[0]}.json)", *cells[1:]])
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([*rows, "", "![Time ratio of each record](track.png)"])


def draw_history(records: Sequence[Record], path: Path) -> None:
    """Draw the time ratio of each record, with its interval, its date and what it changed; the file
    is replaced whole."""
    from matplotlib.figure import Figure  # slow to import, so only where it is used

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    # One place each and not one in time: several may be of one day.
    places, ratios = range(len(records)), [record.ratio for record in records]
    axes.step(places, ratios, where="post", color=COLOURS[2], linewidth=1.4)
    for place, record in zip(places, records, strict=True):
        if record.low is not None and record.high is not None:
            axes.plot([place, place], [record.low, record.high], color=COLOURS[2], linewidth=4)
        axes.plot([place], [record.ratio], "o", color=COLOURS[1])
        axes.annotate(
            f"{record.ratio:.3f}\n{fill(shorten(record.changed, 90, placeholder='...'), 36)}",
            (place, record.ratio),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=7.5,
            parse_math=False,
        )
    axes.set_xticks(places, [record.date for record in records])
    axes.set_xlim(-0.2, max(1, len(records)) - 0.2)
    axes.set_ylim(0, 1.2 * max(ratios, default=1.0))
    axes.set(ylabel="training time, of the reference's")
    axes.set_title("The laptop track: time to the target")
    finish_axes(axes)
    save_figure(figure, path)
