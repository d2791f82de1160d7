"""Ctrl-C and SIGTERM end the step in progress, never the middle of one."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopRequest:
    """A context manager that turns the first SIGINT or SIGTERM into `requested`.

    A second SIGINT interrupts at once: whoever presses Ctrl-C twice means it, and checkpoints are
    whole or absent whenever that happens.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
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
