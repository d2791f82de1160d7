"""Ctrl-C and SIGTERM end the step in progress, never the middle of one.

Several processes must stop at the same step, and a signal reaches them at different moments, or
only one of them: they vote once a step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

import torch

from quintic.distributed.world import AsyncCollective, World

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


class GracefulShutdown:
    """A context manager that turns the first SIGINT or SIGTERM into `requested`.

    A second SIGINT interrupts at once: whoever presses Ctrl-C twice means it, and checkpoints are
    whole or absent whenever that happens.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> GracefulShutdown:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name


class ShutdownVote:
    """Whether any process was asked to stop: one answer for all of them, once a step.

    The vote travels while the step computes, so it costs no time of its own.
    """

    def __init__(self, stop: GracefulShutdown, world: World) -> None:
        self._stop, self._world = stop, world
        self._vote: AsyncCollective | None = None
        if world.size > 1:
            self.cast()

    def cast(self) -> None:
        """Tell the others; `outcome` needs one vote each."""
        if self._world.size > 1:
            asked = float(self._stop.requested is not None)
            self._vote = self._world.all_reduce_max(torch.tensor([asked]))

    def outcome(self) -> bool:
        """Whether to stop now."""
        if self._vote is None:
            return self._stop.requested is not None
        return bool(self._vote.wait().item())
