"""Moments of a run at which a test does something to it, for the run's own process to execute.

The run waits for what the test does, however late that comes: it has not ended meanwhile, and has
not gone on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import quintic.distributed.watchdog
import quintic.train
from quintic.console import RunProgress
from quintic.distributed.signals import GracefulShutdown
from quintic.distributed.watchdog import Watchdog
from quintic.metrics_file import MetricsRecord
from tests.waiting import LAST_BOUND_S

_stops: list[GracefulShutdown] = []


def _made(self: GracefulShutdown, *arguments: Any, own: Any = GracefulShutdown.__init__) -> None:
    own(self, *arguments)
    _stops.append(self)


GracefulShutdown.__init__ = _made  # type: ignore[assignment,method-assign]


def _told() -> bool:
    return any(stop.requested for stop in _stops)


def hold(
    module: Any,
    name: str,
    when: Callable[..., bool],
    *,
    until: Callable[[], bool] = _told,
    forever: bool = False,
) -> None:
    """Let a function say "now" when it is first called so, and begin once a signal asked the run to
    stop. With `forever` it then says "told" and does not come back, as a step that takes hours."""
    own, waited = getattr(module, name), False

    def held(*arguments: Any) -> Any:
        nonlocal waited
        if not waited and when(*arguments):
            waited = True
            print("now", flush=True)
            while not until():
                time.sleep(0.01)
            if forever:
                print("told", flush=True)
                time.sleep(3600)
        return own(*arguments)

    setattr(module, name, held)


def hold_at(step: int, **options: Any) -> None:
    """Hold the run at the beginning of a step until a signal has asked it to stop."""
    hold(quintic.train, "apply_schedule", lambda run, now: now == step, **options)


def hold_at_until(step: int, path: str) -> None:
    """Hold the run at the beginning of a step until a file exists, or a signal asked it to stop."""
    hold_at(step, until=lambda: Path(path).exists() or _told())


def watch_once(path: str) -> None:
    """Let no rank count as hung before a file exists, however slow it is; from then on the watchdog
    has the timeout of the run."""

    def timeout_s(watchdog: Watchdog) -> float:
        own: float = vars(watchdog)["timeout_s"]
        return own if Path(path).exists() else LAST_BOUND_S

    def keep(watchdog: Watchdog, own: float) -> None:
        vars(watchdog)["timeout_s"] = own

    vars(quintic.distributed.watchdog)["Watchdog"]._timeout_s = property(timeout_s, keep)


def kill_after(step: int, seconds: float, at_most: int) -> None:
    """End this process without a word, that much of its own processor time after the loss of a
    step is written; at the latest `at_most` steps later."""
    own = RunProgress.show

    def show(self: RunProgress, record: MetricsRecord) -> None:
        own(self, record)
        if record["step"] == step and "train_loss" in record:
            signal.setitimer(signal.ITIMER_PROF, seconds)
        if record["step"] == step + at_most:
            os.kill(os.getpid(), signal.SIGKILL)

    RunProgress.show = show  # type: ignore[method-assign]
