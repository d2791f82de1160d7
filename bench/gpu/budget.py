"""How much time is left, and what was left out for want of it."""

from __future__ import annotations

import time


class Budget:
    """Seconds from its making; `said` collects what was shortened or skipped, for the report."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.said: list[str] = []

    @property
    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._ends - time.monotonic())

    def allows(self, seconds: float, what: str) -> bool:
        """Whether so many seconds are left; where not, the report says that `what` was skipped."""
        if seconds <= self.left_s:
            return True
        self.say(f"skipped {what}: it needs about {seconds:.0f} s and {self.left_s:.0f} s are left")
        return False

    def say(self, text: str) -> None:
        """Print a line now and keep it for the report."""
        print(text, flush=True)
        self.said.append(text)
