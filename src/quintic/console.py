"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console as RichConsole
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

if TYPE_CHECKING:
    # The last imports PyTorch, which takes seconds and which the data commands do without.
    from quintic.data.build.pipeline import BuildStatus
    from quintic.data.hub.progress import Transfer
    from quintic.metrics import Record

PLAIN_LINE_EVERY_S = 10.0


class Console:
    """Lines and one progress bar, on standard output; of several processes one speaks."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.rich = RichConsole(highlight=False, soft_wrap=True, quiet=quiet)

    def line(self, text: str) -> None:
        """Print one line, above the progress bar where there is one."""
        self.rich.print(text, markup=False)

    def stage(self, name: str, fraction: float) -> None:
        """Progress of a preparation, for example building the embedded corpus."""
        if self.rich.is_terminal:
            self.rich.print(f"{name} {fraction:4.0%}", end="\r", markup=False)
            if fraction >= 1:
                self.rich.print()
        elif fraction in (0, 1):
            self.line(f"{name}: {'done' if fraction else 'started'}")


class _Bar:
    """A progress bar on a terminal, a line now and then elsewhere; a context manager.

    `_bar` is None where there is no terminal.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self.console = console
        self._last_line_s = time.monotonic()
        self._task: TaskID | None = None
        self._bar = (
            Progress(*columns, TimeRemainingColumn(), console=console.rich)
            if console.rich.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _line_due(self) -> bool:
        """Whether the last plain line was long enough ago; if so, this is the time of the next."""
        now = time.monotonic()
        if now - self._last_line_s < PLAIN_LINE_EVERY_S:
            return False
        self._last_line_s = now
        return True


class RunProgress(_Bar):
    """Shows the records of a run as they come; a context manager."""

    def __init__(self, console: Console, steps: int, first_step: int) -> None:
        super().__init__(
            console,
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
        )
        self.steps = steps
        self._last_line_s = 0.0  # the first step is shown at once
        if self._bar is not None:
            self._task = self._bar.add_task("train", total=steps, completed=first_step, text="")

    def show(self, record: Record) -> None:
        """One record of `metrics.jsonl`."""
        step = record["step"]
        if "val_loss" in record:
            self.console.line(f"step {step}/{self.steps}  validation loss {record['val_loss']:.4f}")
            return
        text = f"loss {record['train_loss']:.4f}  {record['tokens_per_s']:,.0f} tokens/s"
        if "mfu" in record:
            text += f"  MFU {record['mfu']:.1%}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step + 1, text=text)
        elif self._line_due():
            self.console.line(f"step {step}/{self.steps}  {text}")


class TransferProgress(_Bar):
    """Shows a fetch or a push as one bar; a context manager."""

    def __init__(self, console: Console, verb: str) -> None:
        super().__init__(
            console,
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
        )
        self._verb = verb

    def show(self, now: Transfer) -> None:
        """How far it has come; safe to call from any thread, one at a time."""
        text = f"{self._verb} {now.files_done}/{now.files_total} files"
        if self._bar is None:
            if self._line_due():
                done, total = now.bytes_done / 1e6, now.bytes_total / 1e6
                self.console.line(f"{text}, {done:,.0f} of {total:,.0f} MB")
        elif self._task is None:
            # What was there before counts as done, and not into the speed.
            self._task = self._bar.add_task(text, total=now.bytes_total, completed=now.bytes_done)
        else:
            self._bar.update(self._task, description=text, completed=now.bytes_done)


class BuildProgress(_Bar):
    """Shows how a dataset is built; a context manager."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            console,
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
        )
        self._first: BuildStatus | None = None
        self._began_s = 0.0

    def show(self, now: BuildStatus) -> None:
        """How far it has come."""
        if self._first is None or self._first.stage != now.stage:
            self._first, self._began_s = now, time.monotonic()
            if self._bar is not None:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                # Time left is guessed from what this process did, not from where it began.
                self._task = self._bar.add_task(
                    now.stage, total=1000, completed=int(1000 * now.fraction), text=""
                )
        seconds = time.monotonic() - self._began_s
        text = ""
        if now.documents:
            text = f"{now.documents:,} documents, {now.tokens:,} tokens"
            if now.tokens > self._first.tokens:
                text += f", {(now.tokens - self._first.tokens) / seconds:,.0f} tokens/s"
            if now.skipped:
                text += f", {now.skipped:,} skipped"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=int(1000 * now.fraction), text=text)
        elif self._line_due():
            self.console.line(f"{now.stage} {now.fraction:.0%}  {text}")


class SweepProgress(_Bar):
    """Shows how far a sweep has come; a context manager.

    Counted in steps of all runs; `steps_done` are those of runs that were done before.
    """

    def __init__(self, console: Console, runs: int, steps: int, steps_done: int) -> None:
        super().__init__(
            console,
            TextColumn("{task.fields[runs]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
        )
        self.runs, self.steps = runs, steps
        self._first, self._done = steps_done, steps_done
        self._began_s = time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task(
                "sweep", total=steps, completed=steps_done, runs="", text=""
            )

    def show(self, runs_done: int, steps_done: int, text: str) -> None:
        """How many runs and steps are done, and what goes on; on a terminal."""
        self._done = steps_done
        if self._bar is not None and self._task is not None:
            runs = f"{runs_done}/{self.runs} runs"
            self._bar.update(self._task, completed=steps_done, runs=runs, text=text)

    def ended(self, runs_done: int, steps_done: int, text: str) -> None:
        """A run has ended: one line, with the time left where no bar shows it."""
        self._done = steps_done
        left = "" if self._bar is not None or runs_done == self.runs else self._time_left()
        self.console.line(f"{runs_done}/{self.runs} runs  {text}{left}")

    def _time_left(self) -> str:
        """As long again for each step as those that were done here have taken."""
        if self._done <= self._first:
            return ""
        seconds = time.monotonic() - self._began_s
        left_s = seconds * (self.steps - self._done) / (self._done - self._first)
        if left_s < 90:
            return f"  about {left_s:.0f} s left"
        if left_s < 5400:
            return f"  about {left_s / 60:.0f} min left"
        return f"  about {left_s / 3600:.1f} h left"
