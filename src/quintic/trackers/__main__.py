"""The process that fills one tracker: `python -m quintic.trackers RUN NAME`.

It brings the tracker every point of the run and goes on as long as its standard input is open; what
it reads there says how the run has ended. Standard output has lines for the person who trains; what
a tool prints goes to standard error, which is a file then.

`python -m quintic.trackers RUN NAME finished` sends a run that has ended, as `finished`, `stopped`
or `failed`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from quintic.errors import reason
from quintic.run_dir import FIGURE
from quintic.trackers import FINISH_S, FOLDER, open_tracker, tracked_run
from quintic.trackers.points import Points

POLL_S = 10.0
"""Seconds between two looks at the run's files; after a failure they double up to a minute."""


class Training:
    """The training process as seen from here: whether it goes on, and how it has ended."""

    def __init__(self, outcome: str | None) -> None:
        self.over = threading.Event()
        self.outcome = outcome or "failed"
        if outcome is not None:
            self.over.set()
        else:
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        self.outcome = sys.stdin.read() or "failed"  # where it was killed
        # Whatever hangs by then: this signal ends the process.
        signal.setitimer(signal.ITIMER_REAL, FINISH_S)
        self.over.set()


def fill(name: str, folder: Path, training: Training, say: Callable[[str], None]) -> None:
    """Bring a tracker all points of the run; returns once it has them and training is over."""
    tracker, points = open_tracker(name, tracked_run(folder)), Points(folder)
    if tracker.where:
        say(tracker.where)
    over = False
    while True:
        if new := points.read(last=over):
            tracker.log(new)
        if over:
            break
        over = training.over.wait(POLL_S)
    figure = folder / FIGURE
    tracker.finish(training.outcome, figure if figure.exists() else None)


def main(folder: Path, name: str, outcome: str | None = None) -> int:
    """Fill a tracker, however often it fails; return 1 where it did not get everything."""
    for each in (signal.SIGINT, signal.SIGTERM):  # a terminal's or a scheduler's, for all
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.nice(10)  # training comes first
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    said: set[str] = set()

    def say(text: str, kind: str = "place") -> None:
        print(text, file=sys.stderr, flush=True)
        if kind not in said:  # once each: where it goes, and that something is wrong
            said.add(kind)
            with contextlib.suppress(BrokenPipeError):  # the training process was killed
                print(text, file=out)

    training, pause_s = Training(outcome), POLL_S
    lock = FileLock(folder / FOLDER / f"{name}.lock")
    at_the_end = 2  # tries, so that one failure is not the end of a run shorter than an import
    while at_the_end:
        at_the_end -= training.over.is_set()
        try:
            # An earlier start that was killed may have left one that is still finishing.
            with lock.acquire(timeout=FINISH_S + POLL_S):
                fill(name, folder, training, say)
            return 0
        except Timeout:
            say("another process that fills it does not end; it is tried again", "fault")
        except Exception as error:
            traceback.print_exc()
            say(f"failed ({reason(error)}); training goes on, and it is tried again", "fault")
        training.over.wait(pause_s)
        pause_s = min(60.0, 2 * pause_s)
    return 1


if __name__ == "__main__":
    code = main(Path(sys.argv[1]).absolute(), *sys.argv[2:])
    sys.stderr.flush()
    os._exit(code)  # whatever threads a tool has left
