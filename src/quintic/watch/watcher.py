"""Looks at all runs again and again, and tells who waits what has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quintic.watch.discover import find_runs
from quintic.watch.held_locks import held_locks
from quintic.watch.run import WatchedRun

LOOK_EVERY_S, DISCOVER_EVERY_S = 1.0, 5.0


class Watcher:
    """The runs under some folders; a run that is gone stays, with what is known of it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self.runs: dict[str, WatchedRun] = {}
        """By the id that the page knows."""
        self._version = 0
        self._changed = threading.Condition()
        self._discover_at = 0.0

    def discover(self) -> None:
        """Add the runs that are new."""
        for root in self.folders:
            for folder in find_runs(root):
                name = str(folder.relative_to(root)) if len(self.folders) == 1 else str(folder)
                run = WatchedRun(folder, root.absolute().name if name == "." else name)
                self.runs.setdefault(run.id, run)

    def look(self) -> bool:
        """Look at every run once; return whether some file has not been read to its end."""
        if time.monotonic() >= self._discover_at:
            self.discover()
            self._discover_at = time.monotonic() + DISCOVER_EVERY_S
        held = held_locks()
        changed = [run for run in self.runs.values() if run.look(held)]
        if changed:
            with self._changed:
                self._version += 1
                for run in changed:
                    run.version = self._version
                self._changed.notify_all()
        return not all(run.metrics.whole for run in self.runs.values())

    def watch(self) -> None:
        """Look for ever; after the first look, which shows the shape of every curve, a page that
        waits for that has its turn before long files are read to their ends."""
        self.look()
        time.sleep(LOOK_EVERY_S)
        while True:
            if not self.look():
                time.sleep(LOOK_EVERY_S)

    def changes(self, since: int, timeout_s: float) -> tuple[int, list[dict[str, Any]]]:
        """Wait for changes after a version; return the version now, and the summaries of the runs
        that have changed, none where it takes longer than so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > since, timeout_s)
            # A copy, since a new run may be added meanwhile.
            found = [run.summary for run in [*self.runs.values()] if run.version > since]
            return self._version, found

    def missing(self) -> Iterator[str]:
        """Yield the folders that are gone."""
        return (str(folder) for folder in self.folders if not folder.is_dir())
