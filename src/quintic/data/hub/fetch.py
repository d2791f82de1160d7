"""Ready-made shards from a hub or the web into a folder, in parallel and continued at any time.

In the folder, `.fetch/` keeps what has arrived of unfinished shards, the record of what is whole,
and the lock that lets one process fetch while others wait. A shard gets its name only once its
size, checksum and header are right.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from filelock import FileLock, Timeout

from quintic.data.dataset import Dataset, open_dataset, split_of
from quintic.data.hub.download import Pacer, RemoteFile, Retry, Say, download
from quintic.data.hub.progress import Progress, Transfer
from quintic.data.hub.remote_index import Listing, Source, list_source, parse_source
from quintic.data.manifest import MANIFEST_FILE, Manifest
from quintic.data.shards import open_shard
from quintic.data.tokenizer import TOKENIZER_FILE
from quintic.errors import QuinticError
from quintic.files import fsync_folder, replacing

STATE_FOLDER = ".fetch"

_RECORD_FILE = "record.json"
_RECORD_VERSION = 1

# How long a fetch that ends early waits for its threads.
_GRACE_S = 1.0

# Room that is left on the disk: a run writes its own files while shards arrive.
_ROOM_LEFT = 64 << 20


def fetch(
    name: str,
    out: Path | None = None,
    *,
    shards: int | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
    retry: Retry | None = None,
    jobs: int = 8,
) -> Dataset:
    """Fetch a dataset of shards; what is already in the folder is not fetched again.

    Args:
        name: a ready-made dataset, hub:OWNER/NAME[@REVISION], or the address of a listing.
        out: the folder; default data/NAME.
        shards: how many training shards, the first by name; None for all.
        progress: called as bytes arrive, from several threads, one at a time.
        say: called with what a user should know: that we wait, that a shard is fetched again.
        retry: how patiently.
        jobs: shards to fetch at a time.

    Raises:
        QuinticError: anything a user can cause or the source refuses; what has arrived is kept.
        OSError: the folder cannot be written, or the disk is full; what has arrived is kept.
    """
    source = parse_source(name)
    folder = source.folder if out is None else out
    say = say or (lambda line: None)
    pacer = Pacer(retry or Retry(), say)
    record = _Record.read(folder)
    try:
        listing = list_source(source, shards, pacer)
    except QuinticError as problem:
        # Law 10: what is in place needs no network.
        if record.source != str(source) or not record.is_complete(folder, shards):
            raise
        say(f"{problem}; what was asked for is already in {folder}")
        return open_dataset(folder)
    _check_room(folder, _missing(folder, listing))
    with _one_process(folder, say):
        fetching = _Fetching(source, folder, listing, pacer, progress or (lambda transfer: None))
        fetching.run(jobs)
    return open_dataset(folder)


@contextmanager
def _one_process(folder: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock; others wait, and then find the shards there."""
    state = folder / STATE_FOLDER
    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is fetching into {folder}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _missing(folder: Path, listing: Listing) -> list[RemoteFile]:
    """The wanted files that are not in the folder, or damaged there.

    Raises:
        QuinticError: the folder holds other shards than the source's, which fetching would mix.
    """
    for path in sorted(folder.glob("*.bin")):
        if split_of(path.name) is not None and path.name not in listing.shards:
            raise QuinticError(
                f"{folder} already holds {path.name}, which is not of this dataset: choose another "
                "folder with --out"
            )
    missing = []
    for file in listing.wanted:
        path = folder / file.name
        if not path.exists() or not _is_whole(path):
            missing.append(file)
        elif path.stat().st_size != file.size:
            raise _other_content(file, path)
    return missing


def _is_whole(path: Path) -> bool:
    if not path.name.endswith(".bin"):
        return True
    try:
        open_shard(path)
    except QuinticError:
        return False
    return True


def _other_content(file: RemoteFile, path: Path) -> QuinticError:
    return QuinticError(
        f"{path} is another file than {file.url}: choose another folder with --out, or remove it"
    )


def _check_room(folder: Path, missing: list[RemoteFile]) -> None:
    """Raise `QuinticError` where the disk has no room for what is still to come."""
    state = folder / STATE_FOLDER
    needed = sum(file.size - _size(state / file.part_name) for file in missing)
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed and needed + _ROOM_LEFT > free:
        raise QuinticError(
            f"{folder} has no room: {needed / 1e6:,.0f} MB are to be fetched, {free / 1e6:,.0f} MB "
            f"are free, and {_ROOM_LEFT / 1e6:,.0f} MB must stay free; choose another disk with "
            "--out, or fewer --shards"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Fetching:
    """A fetch under way, in a folder that no other process fetches into."""

    def __init__(
        self, source: Source, folder: Path, listing: Listing, pacer: Pacer, progress: Progress
    ) -> None:
        self.folder = folder
        self.state = folder / STATE_FOLDER
        self.listing = listing
        self.pacer = pacer
        # Read again: a process that held the lock before us may have fetched.
        self.record = _Record.read(folder)
        self.record.source = str(source)
        self.record.commit = listing.commit
        self.record.train_shards = sum(split_of(name) == "train" for name in listing.shards)
        self._progress = progress
        self._lock = Lock()
        self._bytes_done = 0
        self._files_done = 0

    def run(self, jobs: int) -> None:
        missing = _missing(self.folder, self.listing)
        _check_room(self.folder, missing)
        present = [file for file in self.listing.wanted if file not in missing]
        for file in missing:
            self._keep_only_part_of(file)
        self._bytes_done = sum(file.size for file in present) + sum(
            _size(self.state / file.part_name) for file in missing
        )
        self._files_done = len(present)
        self._report()
        self._write_manifest()
        tasks = [
            *(partial(self._verify, file) for file in present),
            *(partial(self._fetch, file) for file in missing),
        ]
        _in_threads(tasks, jobs, self.pacer)

    def _keep_only_part_of(self, file: RemoteFile) -> None:
        """Remove parts of another content, which the source no longer has."""
        for part in self.state.glob(f"{file.name}.*.part"):
            if part.name != file.part_name or part.stat().st_size > file.size:
                part.unlink()

    def _verify(self, file: RemoteFile) -> None:
        """Make sure that a file which was there already is the source's; once per file."""
        if self.record.files.get(file.name, "unknown") == file.checksum:
            return
        self.pacer.check()
        if not file.has_checksum_of(self.folder / file.name):
            raise _other_content(file, self.folder / file.name)
        with self._lock:
            self._write_down(file)

    def _fetch(self, file: RemoteFile) -> None:
        self.pacer.check()
        path, part = self.folder / file.name, self.state / file.part_name
        if path.exists():
            self.pacer.say(f"{path} is damaged: fetching it again")
        check = _no_check if file.name == TOKENIZER_FILE else open_shard
        download(file, part, self.pacer, check, self._arrived)
        self.pacer.check()
        _put_on_disk(part)
        with self._lock:
            part.replace(path)
            fsync_folder(self.folder)
            # Right after the shard: a manifest that does not list it makes the folder unreadable.
            self._write_manifest()
            self._write_down(file)
            self._files_done += 1
            self._report()

    def _write_down(self, file: RemoteFile) -> None:
        self.record.files[file.name] = file.checksum
        self.record.write(self.folder)

    def _write_manifest(self) -> None:
        """The source's manifest, of the shards that are here: that may be fewer than all."""
        manifest = self.listing.manifest
        if manifest is None:
            return
        here = tuple(shard for shard in manifest.shards if (self.folder / shard.file).exists())
        trimmed = replace(manifest, shards=here)
        if here and not (
            (self.folder / MANIFEST_FILE).exists() and Manifest.read(self.folder) == trimmed
        ):
            trimmed.write(self.folder)

    def _arrived(self, count: int) -> None:
        with self._lock:
            self._bytes_done += count
            self._report()

    def _report(self) -> None:
        wanted = self.listing.wanted
        total = sum(file.size for file in wanted)
        self._progress(Transfer(self._bytes_done, total, self._files_done, len(wanted)))


def _in_threads(tasks: Sequence[Callable[[], None]], jobs: int, pacer: Pacer) -> None:
    """Do tasks in several threads; the first exception stops all of them, and is raised.

    Unlike those of a ThreadPoolExecutor, the threads are not waited for without limit, here or at
    the end of the process: one that waits for a silent server cannot be told anything.

    Args:
        tasks: what to do.
        jobs: number of threads.
        pacer: of the tasks.
    """
    waiting, ended = SimpleQueue[Callable[[], None]](), SimpleQueue[Exception | None]()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        try:
            while True:
                waiting.get_nowait()()
        except Empty:
            ended.put(None)
        except Exception as error:  # raised below, in the thread that asked
            ended.put(error)

    threads = [Thread(target=work, name="fetch", daemon=True) for _ in range(min(jobs, len(tasks)))]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            error = ended.get()
            if error is not None:
                raise error
    finally:
        pacer.stop()
        end_s = time.monotonic() + _GRACE_S
        for thread in threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        pacer.abandoned = True


def _no_check(path: Path) -> None:
    """For files that are no shards."""


def _put_on_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@dataclass
class _Record:
    """What is known of the files in a folder, so that they are verified once.

    Attributes:
        source: what they were fetched from.
        commit: of the hub's repository.
        train_shards: how many training shards the source has.
        files: name and checksum of what is whole; no checksum where the source gives none.
    """

    source: str
    commit: str | None
    train_shards: int
    files: dict[str, str | None]

    @classmethod
    def read(cls, folder: Path) -> "_Record":
        """The record of a folder; empty where there is none to be read."""
        try:
            content: Any = json.loads((folder / STATE_FOLDER / _RECORD_FILE).read_text())
            if content["format_version"] == _RECORD_VERSION:
                return cls(
                    content["source"],
                    content["commit"],
                    content["train_shards"],
                    dict(content["files"]),
                )
        except (OSError, ValueError, KeyError, TypeError):
            pass  # everything in it can be found out again
        return cls("", None, 0, {})

    def write(self, folder: Path) -> None:
        content = {"format_version": _RECORD_VERSION, **vars(self)}
        with replacing(folder / STATE_FOLDER / _RECORD_FILE) as file:
            file.write(json.dumps(content, indent=2, sort_keys=True).encode())

    def is_complete(self, folder: Path, shards: int | None) -> bool:
        """Is all of what was asked for in the folder?"""
        whole = [name for name in self.files if (folder / name).exists()]
        whole = [name for name in whole if _is_whole(folder / name)]
        train = [name for name in whole if split_of(name) == "train"]
        val = [name for name in whole if split_of(name) == "val"]
        return bool(val) and len(train) >= (shards or self.train_shards)
