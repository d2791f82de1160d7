"""trackio, in the run's folder `trackio`, or where TRACKIO_DIR says; its project is TRACKIO_PROJECT
or `quintic`.

Each start writes the run anew: trackio would keep a step twice, and loses the newest half second
of a process that is killed. `trackio sync` brings a project to a Space.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from quintic.trackers import TrackedRun, Tracker
from quintic.trackers.points import Point

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Trackio(Tracker):
    """A run in trackio's local store, by the name of its folder and its id."""

    def __init__(self, run: TrackedRun) -> None:
        own = str(run.folder / "trackio")
        store = os.environ.setdefault("TRACKIO_DIR", own)  # read when it is imported
        # With these it would send what it can neither read back nor delete.
        remote = [name for name in REMOTE if os.environ.pop(name, None)]
        import trackio

        # Of an opening that failed, whose thread would bring back what is deleted here.
        with contextlib.suppress(Exception):  # there is none, or it fails again
            trackio.finish()
        project = os.environ.get("TRACKIO_PROJECT", "quintic")
        name = f"{run.name}-{run.id}"
        with contextlib.suppress(ValueError):  # there is no such project yet
            for older in trackio.Api().runs(project):
                if older.name == name:
                    older.delete()
        self._trackio: Any = trackio
        self._run = trackio.init(
            project=project,
            name=name,
            config=run.flat_config,
            resume="never",
            embed=False,
            auto_log_gpu=False,  # this process is not the one that trains
            auto_log_cpu=False,
        )
        self._last = 0
        self.where = f"{name}; look at it with TRACKIO_DIR={store} trackio show"
        if remote:
            self.where += f"; {remote[0]} is left out, trackio sync brings it there"

    def log(self, points: list[Point]) -> None:
        """Store points; trackio's own thread writes them twice a second."""
        for point in points:
            self._run.log({**point.values, **point.texts}, step=point.step)
            self._last = point.step

    def finish(self, outcome: str, figure: Path | None) -> None:
        """Store figure and outcome, and wait for trackio's thread."""
        if figure is not None:
            self._run.log({"loss": self._trackio.Image(figure)}, step=self._last)
        self._run.finish()


open_run = Trackio
