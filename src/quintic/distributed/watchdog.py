"""The watchdog finds a rank that hangs, says what it was doing, and ends the run so that it can be
restarted; it ends a rank whose launcher is gone.

Every rank notes what it is doing (`at`); a thread posts that for the others to see. When a rank has
made no progress for too long, all know which one was not waiting for another.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from quintic.distributed.failures import FAILED_KEY
from quintic.distributed.world import World
from quintic.errors import LostRankError

POLL_S = 1.0
LOOK_AGAIN_POLLS = 3
LAST_CALL_S = 30.0
"""Most time that a rank whose run is over waits for the store's answer to its watchdog."""
LAST_WORDS_S = 5.0
"""How long a rank may still take to end by itself once another has failed."""
DOING_KEY, HUNG_KEY = "quintic/doing/{}", "quintic/hung"


@dataclass
class _Doing:
    """The state of a rank as the others see it."""

    step: int
    what: str
    waits: bool
    """In a collective, where the others' hanging shows."""
    since_s: float
    beats: int
    """Counts up as long as the process lives."""
    where: str = ""


class Watchdog:
    """What a rank is doing, and a thread that compares it with what the others do.

    A rank counts as hung after `timeout_s` seconds without progress. Until `running` is entered,
    and where there are no other ranks, nothing watches.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world, self._timeout_s = world, timeout_s
        self._now = (0, "setting up", False, time.monotonic())
        self._ended = threading.Event()
        self._beats = 0
        self._main_thread = threading.main_thread().ident

    @contextmanager
    def running(self) -> Iterator[Watchdog]:
        """Watch as long as the context is open."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if self._world.size > 1:
            thread.start()
        wait_s = 2 * POLL_S
        try:
            yield self
            wait_s = LAST_CALL_S
        finally:
            self._ended.set()
            # Where it is in a call of the store as Python ends, C++ aborts the whole process.
            if thread.is_alive():
                thread.join(wait_s)

    def at(self, step: int, what: str, *, waits: bool = False) -> None:
        """Note what this rank begins to do; `waits` where that needs the other ranks."""
        self._now = (step, what, waits, time.monotonic())

    def _watch(self) -> None:
        poll_s = min(POLL_S, self._timeout_s / 4)
        try:
            # A connection of its own: the main thread may sit in a call on the other one.
            store = self._world.another_store(timedelta(seconds=self._timeout_s))
            self._watch_all(store, poll_s)
        except RuntimeError:  # the store is gone, with the launcher or with a machine
            while not self._ended.wait(poll_s):
                step, what, _, since_s = self._now
                if time.monotonic() - since_s > self._timeout_s:
                    message = f"no progress for {self._timeout_s:.0f} s in {what} of step {step}"
                    self._end(f"rank {self._world.rank}: {message}, and its launcher is gone")

    def _watch_all(self, store: Any, poll_s: float) -> None:
        failed_at: float | None = None
        while not self._ended.wait(poll_s):
            if self._post(store).since_s > self._timeout_s:
                before = self._everybody(store)
                for _ in range(LOOK_AGAIN_POLLS):  # every rank that lives posts meanwhile
                    self._ended.wait(poll_s)
                    self._post(store)
                after = self._everybody(store)
                # A rank that waits for a slow one is no reason: only where none moves on.
                if not self._ended.is_set() and _all_stuck(before, after, self._timeout_s):
                    self._report(store, _explain(before, after, self._timeout_s))
            if failed_at is None and store.check([FAILED_KEY]):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > LAST_WORDS_S:
                self._end()  # stuck in a collective with the rank that failed

    def _post(self, store: Any) -> _Doing:
        step, what, waits, since = self._now
        self._beats += 1
        age = time.monotonic() - since
        doing = _Doing(step, what, waits, age, self._beats)
        if age > self._timeout_s / 2:
            doing.where = self._innermost_frame()
        store.set(DOING_KEY.format(self._world.rank), json.dumps(asdict(doing)))
        return doing

    def _innermost_frame(self) -> str:
        """Name the line of quintic's own code that the main thread is in, else of any code."""
        frame = sys._current_frames().get(self._main_thread or 0)
        own = Path(__file__).parents[1]
        first = frame
        while frame is not None and own not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        frame = frame or first
        if frame is None:
            return ""
        return f" ({Path(frame.f_code.co_filename).name} line {frame.f_lineno})"

    def _report(self, store: Any, message: str) -> None:
        """The first rank to come here speaks; all end."""
        first = store.add(HUNG_KEY, 1) == 1
        store.add(FAILED_KEY, 1)
        self._end(message if first else "")

    def _end(self, message: str = "") -> None:
        """End this process, whatever its main thread waits for."""
        if message:
            os.write(2, f"quintic: {message}\n".encode())
        os._exit(LostRankError.exit_code)

    def _everybody(self, store: Any) -> list[_Doing | None]:
        keys = [DOING_KEY.format(rank) for rank in range(self._world.size)]
        return [_Doing(**json.loads(store.get(k))) if store.check([k]) else None for k in keys]


def _all_stuck(before: list[_Doing | None], after: list[_Doing | None], timeout_s: float) -> bool:
    """Return whether no rank has moved on for that long, from two looks at what everybody does."""
    return all(
        later is None or _silent(earlier, later) or later.since_s > timeout_s
        for earlier, later in zip(before, after, strict=True)
    )


def _silent(earlier: _Doing | None, later: _Doing) -> bool:
    return earlier is not None and later.beats == earlier.beats


def _explain(before: list[_Doing | None], after: list[_Doing | None], timeout_s: float) -> str:
    """Name the ranks that hang, from two looks at what everybody does."""
    silent, hanging = [], []
    for rank, (earlier, later) in enumerate(zip(before, after, strict=True)):
        if later is None:
            silent.append(f"rank {rank} never answered")
        elif _silent(earlier, later):
            silent.append(
                f"rank {rank} does not answer any more, last seen in {later.what} of step "
                f"{later.step}"
            )
        elif not later.waits:
            hanging.append(
                f"rank {rank} has been in {later.what} of step {later.step} for "
                f"{later.since_s:.0f} s{later.where}"
            )
    found = silent + hanging
    if not found:
        found = [
            f"rank {rank} waits in {doing.what} of step {doing.step}"
            for rank, doing in enumerate(after)
            if doing is not None
        ] + ["no rank is at work, so a connection between them is lost"]
    return (
        f"no progress for {timeout_s:.0f} s: {'; '.join(found)}; stopped, continue with --resume, "
        "and if such a pause is normal raise --train.hang-timeout-s"
    )
