"""Trackers: a run's config, metrics, samples and figure copied into the tools people look at.

A tracker is a copy, and `metrics.jsonl` is what it is a copy of. Each one is filled by a process of
its own (__main__.py), which follows the run's files (points.py) and brings the tracker what that
lacks; the training process starts it, hands its lines on and waits for it at the end, a bounded
time (processes.py). So whatever a tracker does, slow, raise, hang or die, costs no step anything,
and what was not delivered is still in the file, also after a kill.

Nothing here imports PyTorch, and a tracker's package is imported in its own process alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from quintic import run_dir
from quintic.errors import require_package
from quintic.files import replacing
from quintic.trackers.points import Point

FOLDER = "trackers"
"""Folder in that of a run, with the run's id, and each tracker's lock and the log of its output."""
FINISH_S = 60.0
"""Seconds that a tracker has to finish once the run has ended."""


@dataclass(frozen=True)
class TrackedRun:
    """Holds what a tracker is told of a run beside its points."""

    folder: Path
    id: str
    """Tells the run apart from all others, and is the same however often it is resumed."""
    config: dict[str, Any]
    """As in `config.json`, and under `environment` what the newest start recorded of itself."""

    @property
    def name(self) -> str:
        """Return the name of the run's folder, by which people know it."""
        return self.folder.name

    @property
    def flat_config(self) -> dict[str, Any]:
        """Return the config by dotted names."""
        return _flat(self.config)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def check_trackers(names: Sequence[str]) -> None:
    """Raise `QuinticError` where the package of a tracker is missing, which only rank 0 needs."""
    for name in names:
        require_package(name, name, f"train.log_to {name}")


class Tracker(ABC):
    """A run in a tracker's store, opened to be filled; a second opening goes on with the first's.

    Opening is `Tracker(run)`. Whatever a tool raises goes through: the tracker is opened anew then,
    and is given all points from the first again. It stores each one once.
    """

    where = ""
    """What to tell the person who trains, such as an address; nothing where it is empty."""

    @abstractmethod
    def log(self, points: list[Point]) -> None:
        """Store points, in the order of their steps; those that are stored already are left out."""

    @abstractmethod
    def finish(self, outcome: str, figure: Path | None) -> None:
        """Store the picture of the loss, and that the run has finished, stopped or failed; returns
        once everything is where it belongs."""


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """Return a run in one of the trackers of `train.log_to`, whose package is imported now."""
    tracker: Tracker = import_module(f"quintic.trackers.{name}").open_run(run)
    return tracker


def tracked_run(folder: Path) -> TrackedRun:
    """Return what a tracker is told of the run in a folder."""
    newest = [{}, *run_dir.read_environments(folder)][-1]
    config = {**run_dir.read_config(folder).to_dict(), "environment": newest}
    return TrackedRun(folder, run_id(folder), config)


def run_id(folder: Path) -> str:
    """Return the id of the run in a folder; the first call draws it and keeps it there."""
    path = folder / FOLDER / "id"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        with replacing(path) as file:
            file.write(uuid4().hex[:12].encode())
    return path.read_text()
