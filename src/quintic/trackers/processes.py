"""The processes that fill a run's trackers, as the training process sees them.

All that training does is to start one for each tracker, and to wait for it at the end, a bounded
time. Between the two it writes `metrics.jsonl` as always.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import quintic
from quintic.console import Console
from quintic.errors import reason
from quintic.trackers import FINISH_S, FOLDER, run_id

PATIENCE_S = 2.0
"""Seconds of waiting at the end of a run that need no explanation."""


class Tracking:
    """The trackers of a run while it trains."""

    def __init__(self, trackers: list[TrackerProcess]) -> None:
        self.trackers = trackers
        self.outcome = "failed"
        """How the run has ended, once it has: finished, stopped or failed."""


@contextmanager
def tracking(folder: Path, names: Sequence[str], console: Console) -> Iterator[Tracking]:
    """Fill trackers with the run in a folder as long as the block runs, and bring them the rest
    after it.

    Nothing that goes wrong with one is raised: it is a line on the console.
    """
    started = (_start(folder, name, console) for name in names)
    found = Tracking([tracker for tracker in started if tracker is not None])
    try:
        yield found
    finally:
        _finish(found.trackers, found.outcome, console)


class TrackerProcess:
    """One of the processes; its lines come to the console as they are written."""

    def __init__(self, folder: Path, name: str, console: Console) -> None:
        self.name, self.log = name, folder / FOLDER / f"{name}.log"
        self.lines = 0
        """Lines that it has said so far."""
        run_id(folder)  # drawn here, before several processes ask for it
        # As it is imported here, which need not be as it is installed.
        path = [str(Path(quintic.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "quintic.trackers", str(folder.absolute()), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
                start_new_session=True,  # what stops training does not stop it at once
            )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._hand_on, args=(console,), daemon=True)
        self._reader.start()

    def _hand_on(self, console: Console) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines += 1
            console.line(f"{self.name}: {line.rstrip()}")

    def say_how_it_ended(self, outcome: str) -> None:
        """Tell the process how the run has ended, which makes it finish."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone
            self._process.stdin.write(outcome)
            self._process.stdin.close()

    def wait(self, until_s: float) -> int | None:
        """Return the exit code; None where it does not end before `time.monotonic()` is so far."""
        try:
            return self._process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it, and what it has started in its group; the rest sees that it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def hear_out(self) -> None:
        """Return once its last line is on the console."""
        self._reader.join(1.0)  # what a tool has started may hold the pipe open


def _start(folder: Path, name: str, console: Console) -> TrackerProcess | None:
    try:
        return TrackerProcess(folder, name, console)
    except OSError as error:
        console.line(f"{name}: not started ({reason(error)}); training goes on without")
        return None


def _finish(trackers: list[TrackerProcess], outcome: str, console: Console) -> None:
    for tracker in trackers:
        tracker.say_how_it_ended(outcome)
    # They end themselves after FINISH_S.
    now = time.monotonic()
    soon, latest = now + PATIENCE_S, now + FINISH_S + PATIENCE_S
    if late := [tracker.name for tracker in trackers if tracker.wait(soon) is None]:
        console.line(f"{', '.join(late)}: getting the rest, for {FINISH_S:.0f} s at most")
    for tracker in trackers:
        code = tracker.wait(latest)
        if code is None:
            tracker.kill()
        tracker.hear_out()
        if code != 0:
            console.line(
                f"{tracker.name}: it may not have all of the run; metrics.jsonl has, and what went "
                f"wrong is in {tracker.log}"
            )
