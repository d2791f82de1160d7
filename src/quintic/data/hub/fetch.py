"""Shards from a hub or the web into a folder, several at a time and continued shard by shard.

In the folder, `.fetch/` keeps what is arriving, the record of what is whole, and the lock that lets
one process fetch while others wait. A shard gets its name only once its size, checksum and header
are right. Files are downloaded one by one, as huggingface_hub's `snapshot_download` does it, but in
threads that a Ctrl-C need not wait for: those of `snapshot_download` 2.4 first finish their files.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Lock

from filelock import FileLock, Timeout

from quintic.data.dataset import Dataset, open_dataset, split_of
from quintic.data.hub.client import Log, StoppedError, Transfer, in_background, with_retries
from quintic.data.hub.remote_index import Remote, RemoteFile, RemoteIndex
from quintic.data.manifest import MANIFEST_FILE, Manifest
from quintic.data.shards import open_shard
from quintic.errors import QuinticError
from quintic.files import fsync_folder, write_json

STATE_FOLDER = ".fetch"

_RECORD_FILE = "record.json"

_DOWNLOADS_AT_A_TIME = 8

# Room that is left on the disk: a run writes its own files while shards arrive.
_ROOM_LEFT = 64 << 20


def fetch(
    name: str,
    out: Path | None = None,
    *,
    shards: int | None = None,
    on_progress: Callable[[Transfer], None] | None = None,
    log: Log | None = None,
) -> Dataset:
    """Fetch a dataset of shards; what is already in the folder is not fetched again.

    `name` is of the catalog, hub:OWNER/NAME[@REVISION], or the address of a listing; `out` is
    data/NAME unless given; `shards` is how many training shards, the first by name, None for all.
    `on_progress` is called as bytes arrive, from several threads, one at a time; `log` with what a
    user should know: that we wait, that a shard is fetched again.

    Raises `QuinticError` for anything a user can cause or the source refuses, and OSError where the
    folder cannot be written or the disk is full. Shards that have arrived are kept.
    """
    remote = Remote.parse(name)
    folder = remote.folder if out is None else out
    log = log or (lambda line: None)
    record = _Record.read(folder)
    try:
        index = remote.index(shards, log)
    except QuinticError as problem:
        # What is in place needs no network.
        if record.source != str(remote) or not record.is_complete(folder, shards):
            raise
        log(f"{problem}; what was asked for is already in {folder}")
        return open_dataset(folder)
    _check_room(folder, _missing(folder, index))
    with _one_process(folder, log):
        _Fetch(remote, folder, index, log, on_progress or (lambda transfer: None)).run()
    return open_dataset(folder)


@contextmanager
def _one_process(folder: Path, log: Log) -> Iterator[None]:
    """Hold the folder's lock; others wait, and then find the shards there."""
    state = folder / STATE_FOLDER
    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"another process is fetching into {folder}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _missing(folder: Path, index: RemoteIndex) -> list[RemoteFile]:
    """Return the wanted files that are not in the folder, or damaged there.

    Raises `QuinticError` where the folder holds other shards, which fetching would mix with these.
    """
    for path in sorted(folder.glob("*.bin")):
        if split_of(path.name) is not None and path.name not in index.shards:
            raise QuinticError(
                f"{folder} already holds {path.name}, which is not of this dataset: choose another "
                "folder with --out"
            )
    missing = []
    for file in index.wanted:
        path = folder / file.name
        if not path.exists() or _header_problem(path) is not None:
            missing.append(file)
        elif path.stat().st_size != file.size:
            raise _other_content(file, path)
    return missing


def _header_problem(path: Path) -> str | None:
    """Return what is wrong with the header or the size of a shard; None for other files."""
    try:
        if path.name.endswith(".bin"):
            open_shard(path)
    except QuinticError as error:
        return str(error)
    return None


def _other_content(file: RemoteFile, path: Path) -> QuinticError:
    return QuinticError(
        f"{path} is another file than {file.url}: choose another folder with --out, or remove it"
    )


def _check_room(folder: Path, missing: Sequence[RemoteFile]) -> None:
    """Raise `QuinticError` where the disk has no room for what is still to come."""
    needed = sum(file.size for file in missing)
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


class _Fetch:
    """A fetch under way, in a folder that no other process fetches into."""

    def __init__(
        self,
        remote: Remote,
        folder: Path,
        index: RemoteIndex,
        log: Log,
        on_progress: Callable[[Transfer], None],
    ) -> None:
        self._remote, self._folder, self._index = remote, folder, index
        self._log, self._on_progress = log, on_progress
        self._arriving = folder / STATE_FOLDER / "arriving"
        # Read here: a process that held the lock before us may have fetched.
        files = _Record.read(folder).files
        train_shards = sum(split_of(name) == "train" for name in index.shards)
        self._record = _Record(str(remote), train_shards, files)
        self._stopped, self._lock = Event(), Lock()
        self._bytes: dict[str, int] = {}
        self._files_done = 0
        self._damaged: set[str] = set()

    def run(self) -> None:
        missing = _missing(self._folder, self._index)
        _check_room(self._folder, missing)
        present = [file for file in self._index.wanted if file not in missing]
        self._bytes = {file.name: file.size for file in present}
        self._files_done = len(present)
        self._report()
        self._write_manifest()
        shutil.rmtree(self._arriving, ignore_errors=True)  # of a process that was killed
        self._arriving.mkdir()
        tasks = iter(
            [
                *(partial(self._verify, file) for file in present),
                *(partial(self._fetch, file) for file in missing),
            ]
        )
        workers = [in_background(lambda: self._work(tasks)) for _ in range(_DOWNLOADS_AT_A_TIME)]
        try:
            for worker in as_completed(workers):
                worker.result()
        finally:
            with self._lock:  # after this no thread changes the folder
                self._stopped.set()
            shutil.rmtree(self._arriving, ignore_errors=True)

    def _work(self, tasks: Iterator[Callable[[], None]]) -> None:
        while not self._stopped.is_set():
            with self._lock:
                task = next(tasks, None)
            if task is None:
                return
            task()

    def _verify(self, file: RemoteFile) -> None:
        """Make sure that a file which was there already is the source's; once per file."""
        if self._record.files.get(file.name, "unknown") == file.checksum:
            return
        if not file.has_checksum_of(self._folder / file.name):
            raise _other_content(file, self._folder / file.name)
        with self._lock:
            self._write_down(file)

    def _fetch(self, file: RemoteFile) -> None:
        path = self._folder / file.name
        if path.exists():
            self._log(f"{path} is damaged: fetching it again")
        arrived = self._download(file)
        with arrived.open("rb") as content:
            os.fsync(content.fileno())
        with self._lock:
            self._check_stopped()
            arrived.replace(path)
            fsync_folder(self._folder)
            # Right after the shard: a manifest that does not list it makes the folder unreadable.
            self._write_manifest()
            self._write_down(file)
            self._bytes[file.name] = file.size
            self._files_done += 1
            self._report()

    def _download(self, file: RemoteFile) -> Path:
        """Return where a file has arrived whole; one that is damaged is fetched a second time."""
        while True:
            arrived = self._download_once(file)
            if arrived.stat().st_size != file.size or not file.has_checksum_of(arrived):
                again = file.name not in self._damaged
                problem = "arrived with another size or another checksum than its source gives"
            elif header := _header_problem(arrived):
                again = file.name not in self._damaged and file.checksum is None
                problem = header.replace(str(arrived), file.url)
            else:
                return arrived
            arrived.unlink()
            self._damaged.add(file.name)
            if not again:
                raise QuinticError(
                    f"{file.name} was not kept: {problem}; tell the owner of {file.url}, or fetch "
                    "from another source"
                )
            self._log(f"{file.name} {problem}: fetching it again")

    def _download_once(self, file: RemoteFile) -> Path:
        def on_bytes(count: int) -> None:
            with self._lock:
                self._check_stopped()
                self._bytes[file.name] = min(count, file.size)
                self._report()

        try:
            return with_retries(
                lambda: file.download(self._arriving, on_bytes), file.name, self._log, self._stopped
            )
        except StoppedError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk
            raise self._remote.error(error, file) from error

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise StoppedError

    def _write_down(self, file: RemoteFile) -> None:
        self._record.files[file.name] = file.checksum
        write_json(self._folder / STATE_FOLDER / _RECORD_FILE, asdict(self._record))

    def _write_manifest(self) -> None:
        """Write the source's manifest, of the shards that are here: that may be fewer than all."""
        manifest = self._index.manifest
        if manifest is None:
            return
        here = tuple(shard for shard in manifest.shards if (self._folder / shard.file).exists())
        trimmed = replace(manifest, shards=here)
        if here and not (
            (self._folder / MANIFEST_FILE).exists() and Manifest.read(self._folder) == trimmed
        ):
            trimmed.write(self._folder)

    def _report(self) -> None:
        wanted = self._index.wanted
        total = sum(file.size for file in wanted)
        done = sum(self._bytes.values())
        self._on_progress(Transfer(done, total, self._files_done, len(wanted)))


@dataclass(frozen=True)
class _Record:
    """The files of a folder that are known to be whole, so that they are verified once.

    `source` is what they were fetched from and `train_shards` how many training shards it has;
    `files` has their checksums, None where the source gives none.
    """

    source: str
    train_shards: int
    files: dict[str, str | None]

    @classmethod
    def read(cls, folder: Path) -> "_Record":
        """Return the record of a folder; empty where none can be read, since all of it can be found
        out again."""
        try:
            content = json.loads((folder / STATE_FOLDER / _RECORD_FILE).read_text())
            return cls(content["source"], content["train_shards"], dict(content["files"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls("", 0, {})

    def is_complete(self, folder: Path, shards: int | None) -> bool:
        """Return whether all of what was asked for is in the folder."""
        whole = [
            name
            for name in self.files
            if (folder / name).exists() and _header_problem(folder / name) is None
        ]
        train = sum(split_of(name) == "train" for name in whole)
        val = any(split_of(name) == "val" for name in whole)
        return val and train >= (shards or self.train_shards)
