"""Shards of a hub's repository into a folder, several at a time and continued shard by shard.

In the folder, `.fetch/` keeps what is arriving, the record of what is whole, and the lock that lets
one process fetch while others wait. A shard gets its name only once its size, checksum and header
are right. Files are downloaded one by one, as huggingface_hub's `snapshot_download` does it, but in
threads that a Ctrl-C need not wait for: those of `snapshot_download` 2.4 first finish their files.
"""

import difflib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Lock

from filelock import FileLock, Timeout

from quintic.data.background import in_background
from quintic.data.bpe_tokenizer import TOKENIZER_FILE
from quintic.data.dataset import Dataset, open_dataset, split_of
from quintic.data.hub.catalog import CATALOG, DATA_FOLDER
from quintic.data.hub.client import (
    HUB_PREFIX,
    HubFile,
    HubRepo,
    Log,
    StoppedError,
    Transfer,
)
from quintic.data.manifest import MANIFEST_FILE, SPLITS, Manifest
from quintic.data.shards import open_shard
from quintic.errors import QuinticError, counted
from quintic.files import fsync_path, write_json

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

    `name` is of the catalog, or hub:OWNER/NAME[@REVISION]; `out` is data/NAME unless given;
    `shards` is how many training shards, the first by name, None for all. `on_progress` is called
    as bytes arrive, from several threads, one at a time; `log` with what a user should know: that
    we wait, that a shard is fetched again.

    Raises `QuinticError` for anything a user can cause or the hub refuses, and OSError where the
    folder cannot be written or the disk is full. Shards that have arrived are kept.
    """
    if shards is not None and shards < 1:
        raise QuinticError(f"--shards is {shards}: it must be at least 1; leave it out for all")
    repo, default_folder = _parse(name)
    folder = default_folder if out is None else out
    log = log or (lambda line: None)
    record = _Record.read(folder)
    try:
        listing = _list_repo(repo, shards, log)
    except QuinticError as problem:
        # What is in place needs no network.
        if record.source != str(repo) or not record.is_complete(folder, shards):
            raise
        log(f"{problem}; what was asked for is already in {folder}")
        return open_dataset(folder)
    _check_room(folder, _missing(folder, listing))
    with _acquire_lock(folder, log):
        _Fetch(repo, folder, listing, log, on_progress or (lambda transfer: None)).run()
    return open_dataset(folder)


def _parse(name: str) -> tuple[HubRepo, Path]:
    """Return the repository of a name, and the folder where its shards go unless told otherwise."""
    if name in CATALOG:
        return HubRepo(CATALOG[name].repo_id), DATA_FOLDER / name
    if name.startswith(HUB_PREFIX):
        repo = HubRepo.parse(name)
        return repo, DATA_FOLDER / repo.repo_id.split("/")[1]
    if re.match(r"https?://", name):
        raise QuinticError(
            f"{name} is a web address, and datasets are fetched from the hub: name its repository, "
            "hub:OWNER/NAME, or download the shards into a folder and train with --data.path FOLDER"
        )
    close = difflib.get_close_matches(name, CATALOG, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise QuinticError(
        f"there is no ready-made dataset {name!r}: {hint}there are {', '.join(CATALOG)}, and any "
        "hub:OWNER/NAME"
    )


@dataclass(frozen=True)
class _Listing:
    """The files of a commit: those wanted, the names of all shards, and the manifest's.

    Wanted are the tokenizer where there is one, the validation shards, and the first training
    shards by name.
    """

    commit: str
    wanted: list[HubFile]
    shards: list[str]
    manifest: HubFile | None


def _list_repo(repo: HubRepo, train_shards: int | None, log: Log) -> _Listing:
    """Ask what a repository has; `train_shards` is how many are wanted, None for all.

    Raises `QuinticError` where there is no such repository, no permission, no network, no shards,
    or fewer than wanted.
    """
    info = repo.info(log)
    files: dict[str, HubFile] = {}
    # The files at the root come first: a manifest in a subfolder is not that of the dataset.
    for entry in sorted(info.siblings or [], key=lambda entry: "/" in entry.rfilename):
        file = HubFile.of(entry)
        if file.name in files and split_of(file.name) is not None:
            raise QuinticError(f"{repo} has two files named {file.name}: fetch them one by one")
        files.setdefault(file.name, file)
    shards = [name for name in sorted(files) if name.endswith(".bin") and split_of(name)]
    train, val = ([name for name in shards if split_of(name) == split] for split in SPLITS)
    if not train or not val:
        split = "val" if train else "train"
        raise QuinticError(
            f"{repo} has no {split} shards: expected files named *_{split}_*.bin; is it a dataset "
            "of token shards?"
        )
    if train_shards is not None and not 1 <= train_shards <= len(train):
        raise QuinticError(
            f"{repo} has {counted(len(train), 'training shard')}, {train_shards} cannot be "
            f"fetched: ask for 1 to {len(train)} with --shards, or leave it out for all"
        )
    names = [name for name in files if name == TOKENIZER_FILE] + val + train[:train_shards]
    wanted = [files[name] for name in names]
    return _Listing(info.sha or "main", wanted, shards, files.get(MANIFEST_FILE))


def _acquire_lock(folder: Path, log: Log) -> AbstractContextManager[object]:
    """Acquire the folder's lock; others wait, and then find the shards there."""
    state = folder / STATE_FOLDER
    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / "lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log(f"another process is fetching into {folder}: waiting for it")
        return lock.acquire()


def _missing(folder: Path, listing: _Listing) -> list[HubFile]:
    """Return the wanted files that are not in the folder, or damaged there.

    Raises `QuinticError` where the folder holds other shards, which fetching would mix with these.
    """
    for path in sorted(folder.glob("*.bin")):
        if split_of(path.name) is not None and path.name not in listing.shards:
            raise QuinticError(
                f"{folder} already holds {path.name}, which is not of this dataset: choose another "
                "folder with --out"
            )
    paths = {file: folder / file.name for file in listing.wanted}
    return [f for f, path in paths.items() if not path.exists() or _header_problem(path)]


def _header_problem(path: Path) -> str | None:
    """Return what is wrong with the header or the size of a shard; None for other files."""
    try:
        if path.name.endswith(".bin"):
            open_shard(path)
    except QuinticError as error:
        return str(error)
    return None


def _check_room(folder: Path, missing: list[HubFile]) -> None:
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
        repo: HubRepo,
        folder: Path,
        listing: _Listing,
        log: Log,
        on_progress: Callable[[Transfer], None],
    ) -> None:
        self._repo, self._folder, self._listing = repo, folder, listing
        self._log, self._on_progress = log, on_progress
        self._arriving = folder / STATE_FOLDER / "arriving"
        # Read here: a process that held the lock before us may have fetched.
        files = _Record.read(folder).files
        train_shards = sum(split_of(name) == "train" for name in listing.shards)
        self._record = _Record(str(repo), train_shards, files)
        missing = _missing(folder, listing)
        present = [file for file in listing.wanted if file not in missing]
        self._waiting = iter(listing.wanted)
        self._bytes = {file.name: file.size for file in present}
        self._files_done = len(present)
        self._manifest: Manifest | None = None
        self._stopped, self._lock = Event(), Lock()

    def run(self) -> None:
        self._report()
        shutil.rmtree(self._arriving, ignore_errors=True)  # of a process that was killed
        self._arriving.mkdir()
        try:
            if (file := self._listing.manifest) is not None:
                arrived = self._download(file, lambda count: None)
                self._manifest = Manifest.parse(arrived.read_bytes(), f"{self._repo}/{file.path}")
                self._write_manifest()
            workers = [in_background(self._work) for _ in range(_DOWNLOADS_AT_A_TIME)]
            for worker in as_completed(workers):
                worker.result()
        finally:
            with self._lock:  # after this no thread changes the folder
                self._stopped.set()
            shutil.rmtree(self._arriving, ignore_errors=True)

    def _work(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                file = next(self._waiting, None)
            if file is None:
                return
            path = self._folder / file.name
            if path.exists() and not _header_problem(path):
                self._verify(file, path)
            else:
                self._fetch(file, path)

    def _verify(self, file: HubFile, path: Path) -> None:
        """Make sure that a file which was there already is the repository's; hash it only once."""
        known = self._record.files.get(file.name) == file.checksum
        if known and path.stat().st_size == file.size:
            return
        if not file.equals(path):
            raise QuinticError(
                f"{path} is another file than {file.path} of {self._repo}: choose another folder "
                "with --out, or remove it"
            )
        with self._lock:
            self._write_down(file)

    def _fetch(self, file: HubFile, path: Path) -> None:
        if path.exists():
            self._log(f"{path} is damaged: fetching it again")

        def on_bytes(count: int) -> None:
            with self._lock:
                self._check_stopped()
                self._bytes[file.name] = min(count, file.size)
                self._report()

        arrived = self._download(file, on_bytes)
        if problem := _header_problem(arrived):
            raise self._not_kept(file, problem.replace(str(arrived), file.path))
        with arrived.open("rb") as content:
            os.fsync(content.fileno())
        with self._lock:
            self._check_stopped()
            arrived.replace(path)
            fsync_path(self._folder)
            # Right after the shard: a manifest that does not list it makes the folder unreadable.
            self._write_manifest()
            self._write_down(file)
            self._bytes[file.name] = file.size
            self._files_done += 1
            self._report()

    def _download(self, file: HubFile, on_bytes: Callable[[int], None]) -> Path:
        """Return where a file has arrived whole; one that is damaged is fetched a second time."""
        problem = "arrived with another size or another checksum than its source gives"
        for attempt in (1, 2):
            commit, stopped = self._listing.commit, self._stopped
            arrived = self._repo.download(
                file.path, commit, self._arriving, on_bytes, self._log, stopped
            )
            if file.equals(arrived):
                return arrived
            arrived.unlink()
            if attempt == 1:
                self._log(f"{file.name} {problem}: fetching it again")
        raise self._not_kept(file, problem)

    def _not_kept(self, file: HubFile, problem: str) -> QuinticError:
        return QuinticError(
            f"{file.name} was not kept: {problem}; tell the owner of {self._repo.page}, or fetch "
            "from another repository"
        )

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise StoppedError

    def _write_down(self, file: HubFile) -> None:
        self._record.files[file.name] = file.checksum
        write_json(self._folder / STATE_FOLDER / _RECORD_FILE, asdict(self._record))

    def _write_manifest(self) -> None:
        """Write the source's manifest, of the shards that are here: that may be fewer than all."""
        if self._manifest is None:
            return
        shards = self._manifest.shards
        here = tuple(shard for shard in shards if (self._folder / shard.file).exists())
        if here:
            replace(self._manifest, shards=here).write(self._folder)

    def _report(self) -> None:
        wanted, done = self._listing.wanted, sum(self._bytes.values())
        total = sum(file.size for file in wanted)
        self._on_progress(Transfer(done, total, self._files_done, len(wanted)))


@dataclass(frozen=True)
class _Record:
    """The files of a folder that are known to be whole, so that they are verified once.

    `source` is what they were fetched from and `train_shards` how many training shards it has;
    `files` has their checksums.
    """

    source: str
    train_shards: int
    files: dict[str, str]

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
