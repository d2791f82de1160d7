"""The runs under some folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from quintic.errors import QuinticError
from quintic.metrics_file import METRICS
from quintic.run_dir import CONFIG, PARAM_GROUPS

DEPTH = 6
"""Folders within folders that are looked into: a sweep of a project has three."""


def find_runs(root: Path) -> Iterator[Path]:
    """Yield the folders of runs at and under a folder, in the order of their names; links and
    hidden folders are not followed, and nothing within a run is looked at."""
    for where, folders, files in os.walk(root):
        folder = Path(where)
        # A model that was exported has a config.json, too.
        if CONFIG in files and (METRICS in files or PARAM_GROUPS in files):
            folders.clear()
            yield folder
        if len(folder.relative_to(root).parts) >= DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def count_runs(folders: Sequence[Path]) -> int:
    """Return how many runs are under some folders; raises `QuinticError` where one of the folders
    is none, or no run is under any of them."""
    for folder in folders:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise QuinticError(f"{folder} {what}: name a folder with runs in it")
        os.scandir(folder).close()  # raises OSError where it may not be read
    found = len({run.absolute() for folder in folders for run in find_runs(folder)})
    if not found:
        raise QuinticError(
            f"there is no run under {', '.join(map(str, folders))}: start one with quintic train, "
            "or name the folder that holds some"
        )
    return found
