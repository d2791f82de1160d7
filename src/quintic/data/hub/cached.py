"""Files of a repository on the hub, in the cache of its client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event

from quintic.data.background import in_background
from quintic.data.hub.client import HubFile, HubRepo, Log, Transfer
from quintic.errors import QuinticError


def fetch_files(
    repo: HubRepo,
    commit: str,
    files: Mapping[str, HubFile],
    wanted: Sequence[str],
    on_progress: Callable[[Transfer], None],
    log: Log,
) -> dict[str, Path]:
    """Download the files of a commit that are wanted, unless the cache has them; return where each
    is. `files` is what the hub lists of the commit, by path.

    Raises `QuinticError` where the hub does not give one, and where one is not what it lists.
    """
    total, done = sum(files[name].size for name in wanted), 0
    fetched: dict[str, Path] = {}
    for name in wanted:

        def on_bytes(count: int, done: int = done) -> None:
            on_progress(Transfer(min(total, done + count), total, len(fetched), len(wanted)))

        # In the background, so that Ctrl-C need not wait for it.
        download = partial(repo.download, name, commit, None, on_bytes, log, Event())
        fetched[name] = in_background(download).result()
        if not files[name].equals(fetched[name]):
            file = fetched[name].resolve()  # the name in the snapshot is a link
            raise QuinticError(
                f"{file} is not the {name} that {repo} lists: remove it and try again"
            )
        on_bytes(files[name].size)
        done += files[name].size
    return fetched
