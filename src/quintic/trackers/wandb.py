"""Weights & Biases: online where the user is logged in or WANDB_MODE says so, else offline in the
run's folder `wandb`, or where WANDB_DIR says; its project is WANDB_PROJECT or `quintic`.

Offline each start writes the run anew, into a folder of its own as wandb does, and the older ones
are removed at the end; so one folder has the whole run. Online wandb goes on with the run of that
id, which takes no step twice.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quintic.trackers import TrackedRun, Tracker
from quintic.trackers.points import Point


class WandB(Tracker):
    """A run of wandb's, by an id that is kept in the run's folder."""

    def __init__(self, run: TrackedRun) -> None:
        # All before the import: the argument `mode` alone lets wandb ask a host at its start.
        mode = os.environ.setdefault("WANDB_MODE", "online" if _logged_in() else "offline")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        folder = Path(os.environ.get("WANDB_DIR", run.folder))
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb" / "data"))
        import wandb

        online = mode == "online"
        self._id, self._wandb = run.id, wandb
        self._older = [] if online else self._folders(folder)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "quintic"),
            id=run.id,
            name=os.environ.get("WANDB_NAME", run.name),
            config=run.config,
            dir=folder,
            resume="allow" if online else None,
            settings=wandb.Settings(
                reinit="finish_previous",  # else one that failed is given back, which is older
                console="off",  # what this process prints is not the run's
                disable_git=True,  # the commit is that of quintic, in the config
                save_code=False,
                x_save_requirements=False,
                # They are of the machine; asking what kind it is takes a request.
                x_disable_stats=not online,
                x_disable_machine_info=not online,
            ),
        )
        # Steps before it are there; wandb itself leaves them out, with a warning each.
        self._first, self._last = self._run.step if online else 0, 0
        self.where = self._run.url or (
            f"offline, in {folder / 'wandb'}; wandb sync brings it online" if not online else ""
        )

    def log(self, points: list[Point]) -> None:
        """Hand points to wandb's own process, which writes or sends them."""
        for point in points:
            if point.step >= self._first:
                self._run.log({**point.values, **point.texts}, step=point.step)
                self._last = point.step

    def finish(self, outcome: str, figure: Path | None) -> None:
        """Store figure and outcome, and wait until everything is written or sent."""
        if figure is not None and self._last >= self._first:
            self._run.log({"loss": self._wandb.Image(str(figure))}, step=self._last)
        self._run.finish(exit_code=int(outcome == "failed"))
        for older in self._older:
            shutil.rmtree(older, ignore_errors=True)

    def _folders(self, folder: Path) -> list[Path]:
        return [*(folder / "wandb").glob(f"offline-run-*-{self._id}")]


def _logged_in() -> bool:
    """Return whether there is a key for wandb's server, without asking that."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc().authenticators(host or "") is not None
    return False


open_run = WandB
