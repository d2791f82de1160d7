"""Shows a person what goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from quintic.errors import counted
from quintic.tasks.curves import is_metric

if TYPE_CHECKING:
    # Some import PyTorch, which takes seconds and which the data commands do without.
    from quintic.data.build.pipeline import BuildStatus
    from quintic.data.hub.client import Transfer
    from quintic.data.loader import Batch
    from quintic.metrics_file import MetricsRecord

PLAIN_LINE_EVERY_S = 10.0
DESCRIPTION, TEXT = "{task.description}", TextColumn("{task.fields[text]}")


@dataclass(frozen=True)
class Table:
    """A heading for each column, and rows of as many cells; the first column names the row."""

    header: list[str]
    rows: list[list[str]]


def short_count(value: float) -> str:
    """Return a count, as of tokens or parameters, in a few characters: 12.5M."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.4g}{unit}"
    return f"{value:,.0f}"


def hours_text(seconds: float) -> str:
    """Return a length of time in hours, below one in minutes or seconds, to two digits."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    if seconds < 3600:
        return f"{seconds / 60:.2g} min"
    hours = float(f"{seconds / 3600:.2g}")
    return f"{hours:,.3g} h" if hours < 1000 else f"{hours:,.0f} h"


def silence_stdout() -> None:
    """Lead standard output to nowhere, since its reader went away."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _UnheardConsole(RichConsole):
    """Falls silent where its reader goes away, as `| head` does, and does not end the process."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does."""
        try:
            super().print(*objects, **options)
        except BrokenPipeError:  # of rich before 13.8, which does not call the other
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on."""
        self.quiet = True
        silence_stdout()


class Console:
    """Lines, tables and one progress bar, on standard output; of several processes one speaks.

    Where the reader of the output goes away the command ends, or goes on `unheard`.
    """

    def __init__(self, *, quiet: bool = False, unheard: bool = False) -> None:
        kind = _UnheardConsole if unheard else RichConsole
        self.rich = kind(highlight=False, soft_wrap=True, quiet=quiet)

    def line(self, text: str) -> None:
        """Print one line, above the progress bar where there is one."""
        self.rich.print(text, markup=False)

    def table(self, table: Table, title: str | None = None) -> None:
        """Print a table, as wide as it is where nobody's terminal limits it.

        Where a terminal is narrower the columns that do not fit follow below, beside the names of
        their rows: nothing is cut.
        """
        out = self.rich
        parts = self._parts(table) if out.is_terminal else [table]
        if not out.is_terminal:
            wide = max(self._width(table), out.width)
            out = RichConsole(file=out.file, quiet=out.quiet, width=wide)
        for number, part in enumerate(parts):
            # Not softly wrapped, since that cuts the cells of a column that is too wide.
            out.print(_rich_table(part, None if number else title), soft_wrap=False)

    def _parts(self, table: Table) -> list[Table]:
        """Return a table as one or several that fit the terminal, each with the column that names
        the rows; a column that is too wide even so is alone beside it, and its cells wrap."""
        if self._width(table) <= self.rich.width:
            return [table]
        names = [row[0] for row in table.rows]
        if len(set(names)) < len(names):  # of a sweep over several fields
            numbered = [[str(number), *row] for number, row in enumerate(table.rows, start=1)]
            table = Table(["", *table.header], numbered)
        parts: list[list[int]] = [[0]]
        for column in range(1, len(table.header)):
            wider = self._width(_columns(table, [*parts[-1], column])) > self.rich.width
            if wider and len(parts[-1]) > 1:
                parts.append([0])
            parts[-1].append(column)
        return [_columns(table, part) for part in parts]

    def _width(self, table: Table) -> int:
        unbounded = self.rich.options.update(max_width=100_000)
        return Measurement.get(self.rich, unbounded, _rich_table(table)).maximum

    def stage(self, name: str, fraction: float) -> None:
        """Show how far a preparation has come, for example that of the embedded corpus."""
        if self.rich.is_terminal:
            self.rich.print(f"{name} {fraction:4.0%}", end="\r", markup=False)
            if fraction >= 1:
                self.rich.print()
        elif fraction in (0, 1):
            self.line(f"{name}: {'done' if fraction else 'started'}")


def _columns(table: Table, columns: list[int]) -> Table:
    header, *rows = ([row[column] for column in columns] for row in (table.header, *table.rows))
    return Table(header, rows)


def _rich_table(table: Table, title: str | None = None) -> RichTable:
    rich = RichTable(title=title, box=SIMPLE_HEAD, title_justify="left")
    for heading in table.header:
        rich.add_column(Text(heading), overflow="fold")  # as Text, since brackets would be markup
    for row in table.rows:
        rich.add_row(*(Text(cell) for cell in row))
    return rich


class _Bar(Progress):
    """A progress bar on a terminal, a line now and then elsewhere; a context manager."""

    def __init__(self, out: Console, head: str, *columns: ProgressColumn) -> None:
        super().__init__(
            TextColumn(head),
            BarColumn(bar_width=None),
            *columns,
            TimeRemainingColumn(),
            console=out.rich,
            disable=not out.rich.is_terminal,
        )
        self.out = out
        self._task = TaskID(0)
        self._last_line_s = time.monotonic()

    def stop(self) -> None:
        """Take the bar away, where there is one: older versions of rich print an empty line."""
        if not self.disable:
            super().stop()

    def _begin(self, total: int, completed: int, description: str = "") -> None:
        """Begin a task; what was done before counts as done, and not into the speed."""
        self._began_s = time.monotonic()
        self._task = self.add_task(description, total=total, completed=completed, text="")

    def _show(self, completed: int, line: str, **fields: Any) -> None:
        """Move the bar; where there is none, print the line if the last was long enough ago."""
        if not self.disable:
            self.update(self._task, completed=completed, **fields)
        elif (now := time.monotonic()) - self._last_line_s >= PLAIN_LINE_EVERY_S:
            self._last_line_s = now
            self.out.line(line)


class RunProgress(_Bar):
    """Shows the records of a run as they come; a context manager."""

    def __init__(self, out: Console, steps: int, first_step: int) -> None:
        super().__init__(out, "step {task.completed:.0f}/{task.total:.0f}", TEXT)
        self.steps = steps
        self._last_line_s = 0.0  # the first step is shown at once
        self._begin(steps, first_step)

    def show(self, record: MetricsRecord) -> None:
        """Show one record of `metrics.jsonl`."""
        step = record["step"]
        if "val_loss" in record:
            self.out.line(f"step {step}/{self.steps}  validation loss {record['val_loss']:.4f}")
            return
        if "tasks_s" in record:
            found = "  ".join(f"{name} {v:.4f}" for name, v in record.items() if is_metric(name))
            self.out.line(f"step {step}/{self.steps}  {found}")
            return
        text = f"loss {record['train_loss']:.4f}  {record['tokens_per_s']:,.0f} tokens/s"
        if "mfu" in record:
            text += f"  MFU {record['mfu']:.1%}"
        self._show(step + 1, f"step {step}/{self.steps}  {text}", text=text)


class EvaluationProgress(_Bar):
    """Shows how many tokens have been evaluated; a context manager."""

    def __init__(self, out: Console, tokens: int) -> None:
        super().__init__(out, "evaluated {task.completed:,.0f}/{task.total:,.0f} tokens")
        self._tokens = tokens
        self._begin(tokens, 0)

    def counting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and show those that are done when the next is asked for."""
        done = 0
        for batch in batches:
            yield batch
            done += int((batch[1] >= 0).sum())
            self._show(done, f"evaluated {done:,} of {self._tokens:,} tokens")


class ScoringProgress(_Bar):
    """Shows how much of a task has been scored; a context manager."""

    def __init__(self, out: Console, task: str, items: int) -> None:
        super().__init__(out, f"scored {task}", TextColumn("{task.percentage:3.0f}%"))
        self._what = f"of {task}, {counted(items, 'item')}"
        self._begin(1000, 0)

    def show(self, fraction: float) -> None:
        """Show the fraction that is done."""
        self._show(round(1000 * fraction), f"scored {fraction:.0%} {self._what}")


class TransferProgress(_Bar):
    """Shows a fetch or a push as one bar; a context manager."""

    def __init__(self, out: Console, verb: str) -> None:
        super().__init__(out, DESCRIPTION, DownloadColumn(), TransferSpeedColumn())
        self._verb = verb

    def show(self, now: Transfer) -> None:
        """Show how far it has come; safe to call from any thread, one at a time."""
        text = f"{self._verb} {now.files_done}/{counted(now.files_total, 'file')}"
        if not self.tasks:
            self._begin(now.bytes_total, now.bytes_done)
        done, total = now.bytes_done / 1e6, now.bytes_total / 1e6
        line = f"{text}, {done:,.0f} of {total:,.0f} MB"
        self._show(now.bytes_done, line, description=text)


class BuildProgress(_Bar):
    """Shows how a dataset is built; a context manager."""

    def __init__(self, out: Console) -> None:
        super().__init__(out, DESCRIPTION, TEXT)
        self._first: BuildStatus | None = None

    def show(self, now: BuildStatus) -> None:
        """Show how far it has come."""
        if self._first is None or self._first.stage != now.stage:
            if self._first is not None:
                self.remove_task(self._task)
            self._first = now
            self._begin(1000, int(1000 * now.fraction), now.stage)
        seconds = time.monotonic() - self._began_s
        text = ""
        if now.documents:
            text = f"{counted(now.documents, 'document')}, {counted(now.tokens, 'token')}"
            if now.tokens > self._first.tokens:
                text += f", {(now.tokens - self._first.tokens) / seconds:,.0f} tokens/s"
            if now.skipped:
                text += f", {now.skipped:,} skipped"
        line = f"{now.stage} {now.fraction:.0%}  {text}"
        self._show(int(1000 * now.fraction), line, text=text)


class SweepProgress(_Bar):
    """Shows how far a sweep has come; a context manager.

    Counted in steps of all runs; `steps_done` are those of runs that were done before.
    """

    def __init__(self, out: Console, runs: int, steps: int, steps_done: int) -> None:
        super().__init__(out, DESCRIPTION, TEXT)
        self.runs, self.steps = runs, steps
        self._first = steps_done
        self._begin(steps, steps_done)

    def show(self, runs_done: int, steps_done: int, text: str) -> None:
        """Show how many runs and steps are done, and what goes on; on a terminal."""
        done = f"{runs_done}/{counted(self.runs, 'run')}"
        self.update(self._task, completed=steps_done, description=done, text=text)

    def ended(self, runs_done: int, steps_done: int, text: str) -> None:
        """Print one line for a run that has ended, with the time left where no bar shows it."""
        left = ""
        if self.disable and runs_done < self.runs and steps_done > self._first:
            # As if each step takes as long as those that were done here.
            seconds = (time.monotonic() - self._began_s) / (steps_done - self._first)
            left = f"  about {timedelta(seconds=round(seconds * (self.steps - steps_done)))} left"
        self.out.line(f"{runs_done}/{counted(self.runs, 'run')}  {text}{left}")
