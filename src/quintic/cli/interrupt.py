"""Ctrl-C while code of others is imported, which may lose it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def keeping_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for a Ctrl-C in the block, at once, and at its end where code in it
    has swallowed that or made another exception of it. Extension modules do so now and then while
    they are imported, PyTorch's among them.

    Does nothing where Ctrl-C is ignored or handled by somebody else, or outside the main thread.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if asked:
            raise KeyboardInterrupt
