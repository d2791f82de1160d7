"""Finds a rank that hangs, says what it was doing, and ends the run so that it can be restarted.

Every rank notes what it is doing (`at`); a thread posts that for the others to see. When a rank has
made no progress for too long, all know which one was not waiting for another.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.distributed.rendezvous import rendezvous

from quintic.distributed import FAILED_KEY, World

POLL_S = 1.0
LAST_WORDS_S = 10.0
"""How long a rank may still take to end by itself once another has failed."""
DOING_KEY, HUNG_KEY = "quintic/doing/{}", "quintic/hung"


@dataclass
class _Doing:
    """What a rank is doing, as the others see it."""

    step: int
    what: str
    waits: bool
    """In a collective, where the others' hanging shows."""
    since_s: float
    beats: int
    """Counts up as long as the process lives."""
    where: str = ""


class Watchdog:
    """A context manager around the loop; without other ranks it does nothing.

    Args:
        world: the processes.
        timeout_s: seconds without progress after which a rank counts as hung.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world, self._timeout_s = world, timeout_s
        self._now = (0, "setting up", False, time.monotonic())
        self._ended = threading.Event()
        self._beats = 0
        self._main_thread = threading.main_thread().ident
        self._parent = os.getppid()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, step: int, what: str, *, waits: bool = False) -> None:
        """Note what this rank begins to do; `waits` where that needs the other ranks."""
        self._now = (step, what, waits, time.monotonic())

    def __enter__(self) -> Self:
        if self._world.size > 1:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2 * POLL_S)

    def _watch(self) -> None:
        # A connection of its own: the main thread may sit in a call on the other one.
        store, _, _ = next(rendezvous("env://"))
        poll_s = min(POLL_S, self._timeout_s / 4)
        failed_at: float | None = None
        try:
            while not self._ended.wait(poll_s):
                if os.getppid() != self._parent:
                    self._parent = os.getppid()
                    os.kill(os.getpid(), signal.SIGTERM)  # the launcher is gone: save and stop
                doing = self._post(store)
                if doing.since_s > self._timeout_s:
                    time.sleep(2 * poll_s)  # every rank posts once more meanwhile
                    if self._now[3] > time.monotonic() - self._timeout_s:
                        continue
                    self._report(store, poll_s)
                if failed_at is None and store.check([FAILED_KEY]):
                    failed_at = time.monotonic()
                if failed_at is not None and time.monotonic() - failed_at > LAST_WORDS_S:
                    os._exit(2)  # stuck in a collective with the rank that failed
        except RuntimeError:
            return  # the store is gone and the run with it: the main thread finds out itself

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
        """Where the main thread is in quintic's own code, else in any."""
        frame = sys._current_frames().get(self._main_thread or 0)
        own = Path(__file__).parent
        first = frame
        while frame is not None and own not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        frame = frame or first
        if frame is None:
            return ""
        return f" ({Path(frame.f_code.co_filename).name} line {frame.f_lineno})"

    def _report(self, store: Any, poll_s: float) -> None:
        """The first rank to come here speaks; all end."""
        if store.add(HUNG_KEY, 1) == 1:
            store.add(FAILED_KEY, 1)
            before = self._everybody(store)
            time.sleep(3 * poll_s)
            message = _explain(before, self._everybody(store), self._timeout_s)
            os.write(2, f"quintic: {message}\n".encode())
        else:
            time.sleep(5 * poll_s)
        os._exit(2)

    def _everybody(self, store: Any) -> list[_Doing | None]:
        keys = [DOING_KEY.format(rank) for rank in range(self._world.size)]
        return [_Doing(**json.loads(store.get(k))) if store.check([k]) else None for k in keys]


def _explain(before: list[_Doing | None], after: list[_Doing | None], timeout_s: float) -> str:
    """Who hangs, from two looks at what everybody does."""
    silent, hanging = [], []
    for rank, (earlier, later) in enumerate(zip(before, after, strict=True)):
        if later is None:
            silent.append(f"rank {rank} never answered")
        elif earlier is not None and later.beats == earlier.beats and not later.waits:
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
