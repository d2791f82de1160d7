"""The list of records: a table for the console, the same in Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from quintic.console import Table
from quintic.figure import COLOURS, finish_axes, save_figure
from quintic.track.record import Record
from quintic.track.verdict import p_text

HEADER = ["record", "time ratio", "bits per byte", "seeds", "p", "commit", "changed", "hardware"]


def records_table(records: Sequence[Record]) -> Table:
    """Return a row for each record, oldest first."""
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
                record.changed,
                f"{record.environment['device']}, {record.reference_median_s:.0f} s the reference",
            ]
            for record in records
        ],
    )


def markdown(records: Sequence[Record]) -> str:
    """Return the table as docs/track.md has it; a line that says so where there is no record."""
    if not records:
        return "No record has been entered yet."
    table = records_table(records)
    lines = [table.header, ["---"] * len(table.header)]
    for row in table.rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append([f"[{row[0]}](../src/quintic/track/records/{row[0]}.json)", *cells[1:]])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw_history(records: Sequence[Record], path: Path) -> None:
    """Draw the time ratio of each record against its date; the file is replaced whole."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
    from matplotlib.figure import Figure  # slow to import, so only where it is used

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    days = [float(date2num(date.fromisoformat(record.date))) for record in records]
    ratios = [record.ratio for record in records]
    axes.step(days, ratios, where="post", color=COLOURS[2], linewidth=1.4)
    for index, (day, record) in enumerate(zip(days, records, strict=True)):
        if record.low is not None and record.high is not None:
            axes.plot([day, day], [record.low, record.high], color=COLOURS[2], linewidth=3)
        axes.plot([day], [record.ratio], "o", color=COLOURS[1])
        words = record.changed if len(record.changed) <= 48 else f"{record.changed[:45]}..."
        axes.annotate(
            f"{record.ratio:.3f}  {words}",
            (day, record.ratio),
            xytext=(8, 8 if index % 2 == 0 else -14),
            textcoords="offset points",
            fontsize=8,
            parse_math=False,
        )
    axes.xaxis_date()
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.margins(x=0.35)
    axes.set_ylim(0, 1.12 * max(ratios, default=1.0))
    axes.set(ylabel="training time, of the reference's")
    axes.set_title("The laptop track: time to the target")
    finish_axes(axes)
    save_figure(figure, path)
