"""Ctrl-C and SIGTERM end the step in progress, never the middle of one.

Several processes must stop at the same step, and a signal reaches them at different moments, or
only one of them: they vote once a step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from quintic.distributed.world import ALONE, AsyncCollective, World

PARENT_EVERY_S = 0.5


def stop_with_launcher() -> None:
    """Send this process SIGTERM when the launcher that started it is gone: nobody else would tell
    it to stop, and whoever continues the run waits for it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM by a function as long as the context is open."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


class GracefulShutdown:
    """The first SIGINT or SIGTERM of any process asks all of them to stop after the same step.

    A second SIGINT interrupts at once: whoever presses Ctrl-C twice means it, and checkpoints are
    whole or absent whenever that happens. Once a step every process says whether it was asked
    (`cast_vote`), and the maximum of the votes decides for all (`agreed`); it travels while the
    step computes, so it costs no time of its own.
    """

    def __init__(self, world: World = ALONE) -> None:
        self.requested: str | None = None
        """Name of the first signal that this process was sent."""
        self._world = world
        self._vote: AsyncCollective | None = None

    @contextmanager
    def handling_signals(self) -> Iterator[GracefulShutdown]:
        """Handle both signals as long as the context is open."""
        with handling(self._handle):
            yield self

    def cast_vote(self) -> None:
        """Tell the other processes; `agreed` needs one vote of each."""
        if self._world.size > 1:
            asked = torch.tensor([float(self.requested is not None)])
            self._vote = self._world.all_reduce_max(asked)

    def agreed(self) -> bool:
        """Return whether to stop now, the same on every process."""
        if self._vote is None:
            return self.requested is not None
        return bool(self._vote.wait().item())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
