"""Indexes of what can be fetched: of the catalog, a repository of the hub, or a page on the web."""

import difflib
import hashlib
import posixpath
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from huggingface_hub import get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from quintic.data.dataset import split_of
from quintic.data.hub.catalog import CATALOG, DATA_FOLDER
from quintic.data.hub.client import (
    HUB_PREFIX,
    HubRepo,
    Log,
    hub_error,
    one_line,
    status_of,
    with_retries,
)
from quintic.data.manifest import MANIFEST_FILE, Manifest
from quintic.data.tokenizer import TOKENIZER_FILE
from quintic.errors import QuinticError
from quintic.files import file_sha256

_TIMEOUT_S = 30.0
_UNPACKED = {"Accept-Encoding": "identity"}


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be fetched.

    `size` is in bytes; `checksum` is "sha256:HEX", or "git:HEX" for the id that git gives a file,
    or None where nobody says. `download` puts the file into a folder and returns where it is, and
    calls its second argument with the number of bytes that are there so far.
    """

    name: str
    url: str
    size: int
    checksum: str | None
    download: Callable[[Path, Callable[[int], None]], Path]

    def has_checksum_of(self, path: Path) -> bool:
        """Return whether a local file has this file's checksum; True where there is none."""
        if self.checksum is None:
            return True
        kind, _, expected = self.checksum.partition(":")
        return (file_sha256(path) if kind == "sha256" else _git_blob_id(path)) == expected


def _git_blob_id(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class RemoteIndex:
    """The files wanted of a remote, the names of all its shards, and its manifest.

    The files are the tokenizer where there is one, the validation shards, and the first training
    shards by name.
    """

    wanted: list[RemoteFile]
    shards: list[str]
    manifest: Manifest | None


@dataclass(frozen=True)
class Remote:
    """A source of shards: a repository of the hub, or the address of a listing on the web.

    `folder` is where they go unless told otherwise.
    """

    place: HubRepo | str
    folder: Path

    @classmethod
    def parse(cls, name: str) -> "Remote":
        """Read the name of a dataset of the catalog, hub:OWNER/NAME[@REVISION] or a web address.

        Raises `QuinticError` for anything else, and suggests the nearest name of the catalog.
        """
        if name in CATALOG:
            return cls(HubRepo(CATALOG[name].repo_id), DATA_FOLDER / name)
        if name.startswith(HUB_PREFIX):
            repo = HubRepo.parse(name)
            return cls(repo, DATA_FOLDER / repo.repo_id.split("/")[1])
        if re.match(r"https?://", name):
            try:
                url = httpx2.URL(name)
            except httpx2.InvalidURL as error:
                raise QuinticError(f"{name} is not a web address: {one_line(error)}") from error
            path = url.path.removesuffix(f"/{MANIFEST_FILE}").rstrip("/")
            return cls(name, DATA_FOLDER / (posixpath.basename(path) or url.host))
        close = difflib.get_close_matches(name, CATALOG, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise QuinticError(
            f"there is no ready-made dataset {name!r}: {hint}there are {', '.join(CATALOG)}, any "
            "hub:OWNER/NAME, and https:// listings of shards"
        )

    def __str__(self) -> str:
        return str(self.place)

    def index(self, train_shards: int | None, log: Log) -> RemoteIndex:
        """Ask what there is; `train_shards` is how many are wanted, None for all.

        Raises `QuinticError` where there is no such place, no permission, no network, no shards, or
        fewer than wanted.
        """
        if isinstance(self.place, HubRepo):
            return _hub_index(self.place, train_shards, log)
        return _web_index(self.place, train_shards, log)

    def error(self, error: Exception, file: RemoteFile) -> QuinticError:
        """Return why a file could not be fetched, and the way out, in one line."""
        if isinstance(self.place, HubRepo):
            return hub_error(error, self.place, f"does not give {file.name}")
        return _web_error(error, file.url)


def _hub_index(repo: HubRepo, train_shards: int | None, log: Log) -> RemoteIndex:
    info = repo.info(log)
    commit = info.sha or "main"
    files: dict[str, RemoteFile] = {}
    for entry in info.siblings or []:
        path = entry.rfilename
        if entry.lfs is not None:
            size, checksum = entry.lfs.size, f"sha256:{entry.lfs.sha256}"
        else:
            size, checksum = entry.size or 0, f"git:{entry.blob_id}"
        name = posixpath.basename(path)
        if name in files and split_of(name) is not None:
            raise QuinticError(f"{repo} has two files named {name}: fetch them one by one")
        # The ones at the root win: a manifest in a subfolder is not that of the dataset.
        if name not in files or "/" not in path:
            download = partial(repo.download, path, commit)
            files[name] = RemoteFile(
                name, f"{repo.page}/blob/{commit}/{path}", size, checksum, download
            )
    wanted = _select(files, train_shards, str(repo))
    manifest = None
    if (file := files.get(MANIFEST_FILE)) is not None:
        with TemporaryDirectory() as folder:
            try:
                arrived = with_retries(
                    lambda: file.download(Path(folder), lambda count: None), str(repo), log
                )
            except (httpx2.HTTPError, OSError) as error:
                raise hub_error(error, repo, "cannot be listed") from error
            manifest = Manifest.parse(arrived.read_bytes(), file.url)
    return RemoteIndex([files[name] for name in wanted], _shards(files), manifest)


def _web_index(address: str, train_shards: int | None, log: Log) -> RemoteIndex:
    """Read a manifest, or a page with links to shards, or a text with a name or address a line."""
    answer = _request("GET", address, log)
    base = answer.url  # after redirects
    manifest = None
    if base.path.endswith(".json"):
        manifest = Manifest.parse(answer.content, address)
        links = [manifest.tokenizer, *(record.file for record in manifest.shards)]
    elif "html" in answer.headers.get("Content-Type", ""):
        page = _Page()
        page.feed(answer.text)
        links = page.links
    else:
        links = answer.text.split()
    urls: dict[str, httpx2.URL] = {}
    for link in links:
        try:
            url = base.join(link)
        except httpx2.InvalidURL:
            continue
        urls.setdefault(posixpath.basename(url.path), url)
    wanted = _select(urls, train_shards, address)
    if manifest is None and MANIFEST_FILE in urls:
        beside = str(urls[MANIFEST_FILE])
        manifest = Manifest.parse(_request("GET", beside, log).content, beside)
    checksums = {r.file: f"sha256:{r.sha256}" for r in manifest.shards} if manifest else {}

    def file_of(name: str) -> RemoteFile:
        url = str(urls[name])
        size = _request("HEAD", url, log).headers.get("Content-Length", "")
        if not size.isdecimal():
            raise QuinticError(
                f"{url} cannot be fetched: its server does not say how long it is; download it by "
                "hand"
            )
        download = partial(_web_download, url, name)
        return RemoteFile(name, url, int(size), checksums.get(name), download)

    with ThreadPoolExecutor(8) as pool:
        return RemoteIndex(list(pool.map(file_of, wanted)), _shards(urls), manifest)


def _request(method: str, url: str, log: Log) -> httpx2.Response:
    """Return a small answer as a whole."""

    def request() -> httpx2.Response:
        response = get_session().request(method, url, headers=_UNPACKED, timeout=_TIMEOUT_S)
        return response.raise_for_status()

    try:
        return with_retries(request, url, log)
    except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
        raise _web_error(error, url) from error


def _web_download(url: str, name: str, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    path = folder / name
    with (
        path.open("wb") as file,
        get_session().stream("GET", url, headers=_UNPACKED, timeout=_TIMEOUT_S) as response,
    ):
        response.raise_for_status()
        for content in response.iter_bytes():
            file.write(content)
            on_bytes(file.tell())
    return path


def _web_error(error: Exception, url: str) -> QuinticError:
    status = status_of(error)
    denied = {401: "denies permission", 403: "denies permission", 404: "has no such file"}
    if isinstance(error, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set; unset it"
    elif status is not None:
        why = f"the server {denied.get(status, 'refuses')} (HTTP {status}); check the address"
    else:
        why = f"its server cannot be reached ({one_line(error)}); check the address and the network"
    return QuinticError(f"{url} cannot be fetched: {why}")


def _select(names: Iterable[str], train_shards: int | None, source: str) -> list[str]:
    """Return the names that are wanted of those on offer, tokenizer and validation first."""
    shards = _shards(sorted(names))
    train, val = ([s for s in shards if split_of(s) == split] for split in ("train", "val"))
    for split, found in (("train", train), ("val", val)):
        if not found:
            raise QuinticError(
                f"{source} has no {split} shards: expected files named *_{split}_*.bin; is it a "
                "dataset of token shards?"
            )
    if train_shards is not None and not 1 <= train_shards <= len(train):
        raise QuinticError(
            f"{source} has {len(train)} training shards, {train_shards} cannot be fetched: ask for "
            f"1 to {len(train)} with --shards, or leave it out for all"
        )
    return [name for name in names if name == TOKENIZER_FILE] + val + train[:train_shards]


def _shards(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(".bin") and split_of(name) is not None]


class _Page(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]
