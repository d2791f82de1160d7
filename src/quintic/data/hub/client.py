"""The Hugging Face hub: its repositories, downloads from them, and errors in one line each."""

import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal, Self, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, scan_cache_dir
from huggingface_hub.errors import (
    CacheNotFound,
    DisabledRepoError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoSibling
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from quintic import __version__
from quintic.errors import QuinticError, one_line
from quintic.files import file_sha256

Log = Callable[[str], None]
T = TypeVar("T")

HUB_PREFIX = "hub:"

_DEFAULT_ENDPOINT = "https://huggingface.co"

# The client repeats requests that no server answers and waits where one asks it to; what it gives
# up at once, such as HTTP 500, is repeated here.
_PAUSES_S = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Transfer:
    """The bytes and files that a fetch or a push has moved or found there before."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


class StoppedError(Exception):
    """Another thread of the same transfer has failed, or the user interrupts it."""


def endpoint() -> str:
    """Return the hub's address, or that of the mirror which HF_ENDPOINT names."""
    return (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


def hub_api() -> HfApi:
    """Return the hub's client; it takes its login from HF_TOKEN or from `hf auth login`."""
    return HfApi(endpoint=endpoint(), library_name="quintic", library_version=__version__)


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its path there, its size in bytes, and its checksum, "sha256:HEX", or
    "git:HEX" for the id that git gives a small file."""

    path: str
    size: int
    checksum: str

    @classmethod
    def of(cls, entry: RepoSibling) -> Self:
        """Return a file as a repository lists it."""
        checksum = f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}"
        return cls(entry.rfilename, entry.size or 0, checksum)

    @property
    def name(self) -> str:
        """Return the name without the folder."""
        return posixpath.basename(self.path)

    def equals(self, local: Path) -> bool:
        """Return whether a local file has this size and checksum."""
        if local.stat().st_size != self.size:
            return False
        if self.checksum.startswith("sha256:"):
            return self.checksum == f"sha256:{file_sha256(local)}"
        blob = b"blob %d\0" % self.size + local.read_bytes()
        return self.checksum == f"git:{hashlib.sha1(blob, usedforsecurity=False).hexdigest()}"


@dataclass(frozen=True)
class HubRepo:
    """A repository on the hub: OWNER/NAME, at a branch, tag or commit, or at its newest."""

    repo_id: str
    revision: str | None = None
    kind: Literal["dataset", "model"] = "dataset"

    @classmethod
    def parse(cls, text: str, kind: Literal["dataset", "model"] = "dataset") -> Self:
        """Read `hub:OWNER/NAME[@REVISION]`; raises `QuinticError` for anything else."""
        match = re.fullmatch(rf"{HUB_PREFIX}(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?", text, re.ASCII)
        if match is None:
            raise QuinticError(
                f"{text!r} names no repository: write hub:OWNER/NAME, or hub:OWNER/NAME@REVISION"
            )
        return cls(match[1], match[2], kind)

    def __str__(self) -> str:
        return HUB_PREFIX + self.repo_id + (f"@{self.revision}" if self.revision else "")

    @property
    def page(self) -> str:
        """The address of the repository's page."""
        folder = "datasets/" if self.kind == "dataset" else ""
        return f"{endpoint()}/{folder}{self.repo_id}"

    def info(self, log: Log) -> DatasetInfo | ModelInfo:
        """Ask for the commit, the card, and every file with its size and checksum, in one request.

        Raises `QuinticError` where there is no such repository, no permission or no network.
        """

        def ask() -> DatasetInfo | ModelInfo:
            found = hub_api().repo_info(
                self.repo_id,
                revision=self.revision,
                repo_type=self.kind,
                files_metadata=True,
                timeout=30,
            )
            assert isinstance(found, DatasetInfo | ModelInfo)
            return found

        return self._ask(ask, "cannot be listed", log, Event())

    def info_or_cache(self, log: Log) -> DatasetInfo | ModelInfo:
        """Return what `info` does; the `QuinticError` where there is none names the folder that the
        cache has of the repository, if it has one."""
        try:
            return self.info(log)
        except QuinticError as error:
            if cached := self.cached_folder():
                raise QuinticError(
                    f"{error}; what was downloaded of it before is in {cached}: name that folder "
                    "instead to do without the hub"
                ) from error
            raise

    def cached_folder(self, file: str = "*", commit: str = "") -> Path | None:
        """Return the folder of the newest commit, or of the one that begins so, of which
        huggingface_hub's cache has files, or one of a name, which may have wildcards."""
        try:
            found = scan_cache_dir(constants.HF_HUB_CACHE).repos
        except (CacheNotFound, OSError, ValueError):
            return None
        own = [r for r in found if (r.repo_id, r.repo_type) == (self.repo_id, self.kind)]
        commits = [
            c
            for r in own
            for c in r.revisions
            if c.commit_hash.startswith(commit) and any(c.snapshot_path.glob(file))
        ]
        return max(commits, key=lambda c: c.last_modified).snapshot_path if commits else None

    def download(
        self,
        file: str,
        commit: str,
        folder: Path | None,
        on_bytes: Callable[[int], None],
        log: Log,
        stopped: Event,
    ) -> Path:
        """Download a file of a commit and return where it is.

        Without a folder it goes to the cache that huggingface_hub keeps (HF_HOME). `on_bytes` is
        called with the number of bytes that are there so far; an exception in it ends the download.
        Raises `QuinticError` where the hub does not give it or the cache cannot be written, OSError
        where the folder cannot, and `StoppedError` where `stopped` is set while we wait for a busy
        hub.
        """
        most = 0

        class Counter(tqdm):
            """Draws nothing; a file that comes over Xet has two, for its bytes and its chunks."""

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})
                self._bytes = int(options.get("initial") or 0)

            def update(self, n: float | None = 1) -> None:
                nonlocal most
                self._bytes += int(n or 0)
                most = max(most, self._bytes)
                on_bytes(most)

        try:
            path = self._ask(
                lambda: hub_api().hf_hub_download(
                    self.repo_id,
                    file,
                    repo_type=self.kind,
                    revision=commit,
                    local_dir=folder,
                    tqdm_class=Counter,
                ),
                f"does not give {file}",
                log,
                stopped,
            )
        except OSError as error:
            if folder is not None:
                raise
            raise QuinticError(
                f"{self} cannot be downloaded into {constants.HF_HUB_CACHE}, huggingface_hub's "
                f"cache ({one_line(error)}): name a folder with room in HF_HOME"
            ) from error
        return Path(path)

    def _ask(self, action: Callable[[], T], doing: str, log: Log, stopped: Event) -> T:
        """Return what an action returns, repeated after growing pauses while the hub is busy.

        No connection at all is not repeated: it means that the machine is offline or the address is
        wrong.
        """
        with hub_errors(self, doing):
            for pause_s in _PAUSES_S:
                try:
                    return action()
                except (httpx2.HTTPError, OSError, RuntimeError) as error:
                    if not _is_transient(error):
                        raise
                    log(f"{self} {doing}: {one_line(error)}, trying again in {pause_s:.0f} s")
                if stopped.wait(pause_s):
                    raise StoppedError
            return action()


def _is_transient(error: BaseException) -> bool:
    error = _cause(error)
    if (status := _status(error)) is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, httpx2.TransportError):
        return not isinstance(error, httpx2.ConnectError | httpx2.UnsupportedProtocol)
    # Xet fails with a RuntimeError; a file of another length is an OSError that is not the disk's.
    return isinstance(error, RuntimeError) or (type(error) is OSError and error.errno is None)


def _cause(error: BaseException) -> BaseException:
    """Return what the client has wrapped, or the error itself.

    It wraps what keeps it from finding a file, and in a RuntimeError what fails in an upload.
    """
    wrapped = error.__cause__ if isinstance(error, LocalEntryNotFoundError | RuntimeError) else None
    return wrapped or error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that an error is about."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


@contextmanager
def hub_errors(repo: HubRepo, doing: str) -> Iterator[None]:
    """Turn what the client raises in the block into a `QuinticError`: what went wrong with a
    repository, and the way out, in one line.

    `doing` says what was not possible, as in "cannot be listed". The disk's OSError passes.
    """
    try:
        yield
    except QuinticError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise QuinticError(f"{repo} {doing}: {_reason(_cause(error), repo)}") from error


def _reason(error: BaseException, repo: HubRepo) -> str:
    status = _status(error)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it, or copy the files from a machine that has them"
    if isinstance(error, GatedRepoError):
        return f"it is gated; accept its conditions on {repo.page} and {login}"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {repo.revision!r}; {repo.page} lists them"
    if isinstance(error, DisabledRepoError):
        return f"the hub has disabled it; see {repo.page}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no such {repo.kind} repository on {endpoint()}, or you may not see it (HTTP "
            f"{status}); check the name; if it is private, {login}"
        )
    if status in (401, 403):
        return f"the hub denies permission (HTTP {status}); {login}, with a token that may do this"
    if isinstance(error, httpx2.TransportError):
        return (
            f"{endpoint()} cannot be reached ({one_line(error)}); check the network, and "
            "HF_ENDPOINT if it is set"
        )
    return f"{one_line(error)}; see {repo.page}, or try again later"
