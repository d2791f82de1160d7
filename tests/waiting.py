"""Waiting in a test: for progress, or for the end of what it waits for. The machine may be slow.

No test has a patience of its own. What neither comes nor dies fails the test at one last bound,
before any timeout that a run would end by itself (`train.hang_timeout_s` is ten minutes, too).
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

LAST_BOUND_S = 600.0
LOOK_EVERY_S = 0.02


def wait_until(
    condition: Callable[[], bool],
    what: str,
    *,
    alive: Callable[[], bool] = lambda: True,
    said: Callable[[], str] = lambda: "",
) -> None:
    """Return once a condition holds.

    Raises `AssertionError` with `what` was waited for, and what was `said` meanwhile, where that
    which is to bring it about is no longer `alive`.
    """
    end_s = time.monotonic() + LAST_BOUND_S
    while not condition():
        if not alive():
            assert condition(), f"ended before {what}: {said()}"
            return
        assert time.monotonic() < end_s, f"no {what}: {said()}"
        time.sleep(LOOK_EVERY_S)


def outputs_after_ctrl_c(process: subprocess.Popen[Any]) -> tuple[Any, Any]:
    """Interrupt a process until it ends, as a user does; returns what it wrote to its pipes.

    Python loses a KeyboardInterrupt that is raised in a destructor.
    """
    end_s = time.monotonic() + LAST_BOUND_S
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=10.0)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < end_s, "Ctrl-C does not end it"


def outputs(process: subprocess.Popen[Any]) -> tuple[Any, Any]:
    """Wait for the end of a process; returns what it wrote to its pipes."""
    return process.communicate(timeout=LAST_BOUND_S)
