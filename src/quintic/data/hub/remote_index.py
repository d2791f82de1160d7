"""What a source of shards offers: a ready-made dataset, a repository of the hub, or a web page."""

import difflib
import posixpath
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import httpx2
from huggingface_hub import get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from quintic import __version__
from quintic.data.dataset import split_of
from quintic.data.hub.catalog import CATALOG, DATA_FOLDER
from quintic.data.hub.client import HUB_PREFIX, HubRepo, hub_api, hub_error, one_line
from quintic.data.hub.download import Pacer, RemoteFile
from quintic.data.manifest import MANIFEST_FILE, Manifest
from quintic.data.tokenizer import TOKENIZER_FILE
from quintic.errors import QuinticError


@dataclass(frozen=True)
class Source:
    """Where shards come from.

    Attributes:
        place: a repository of the hub, or the address of a listing on the web.
        folder: where to put them unless told otherwise.
    """

    place: HubRepo | str
    folder: Path

    def __str__(self) -> str:
        return str(self.place)


@dataclass(frozen=True)
class Listing:
    """What a source offers, and what of it is wanted.

    Attributes:
        wanted: the validation shards, the first training shards by name, and the tokenizer where
            there is one; tokenizer first.
        shards: names of all shards on offer.
        manifest: the source's own, of all its shards; None where it has none.
        commit: of the hub's repository; None on the web.
    """

    wanted: list[RemoteFile]
    shards: list[str]
    manifest: Manifest | None
    commit: str | None


def parse_source(name: str) -> Source:
    """Read the name of a ready-made dataset, hub:OWNER/NAME[@REVISION], or a web address.

    Raises:
        QuinticError: neither of them; suggests the nearest ready-made dataset.
    """
    if name in CATALOG:
        return Source(HubRepo(CATALOG[name].repo_id), DATA_FOLDER / name)
    if name.startswith(HUB_PREFIX):
        repo = HubRepo.parse(name)
        return Source(repo, DATA_FOLDER / repo.repo_id.split("/")[1])
    if re.match(r"https?://", name):
        try:
            url = httpx2.URL(name)
        except httpx2.InvalidURL as error:
            raise QuinticError(f"{name} is not a web address: {one_line(error)}") from error
        path = url.path.removesuffix(f"/{MANIFEST_FILE}").rstrip("/")
        return Source(name, DATA_FOLDER / (posixpath.basename(path) or url.host))
    close = difflib.get_close_matches(name, CATALOG, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise QuinticError(
        f"there is no ready-made dataset {name!r}: {hint}there are {', '.join(CATALOG)}, any "
        "hub:OWNER/NAME, and https:// listings of shards"
    )


def list_source(source: Source, train_shards: int | None, pacer: Pacer) -> Listing:
    """Ask a source what it has.

    Args:
        source: where to ask.
        train_shards: how many training shards are wanted; None for all.
        pacer: of this fetch.

    Raises:
        QuinticError: no such source, no permission, no network, no shards, or fewer than wanted.
    """
    if isinstance(source.place, HubRepo):
        return _list_hub(source.place, train_shards, pacer)
    return _list_web(source.place, train_shards, pacer)


def _list_hub(repo: HubRepo, train_shards: int | None, pacer: Pacer) -> Listing:
    """One request gives the commit and every file with its size and checksum."""
    api = hub_api()
    timeout_s = pacer.retry.timeout_s
    try:
        info = pacer.patiently(
            lambda: api.dataset_info(
                repo.repo_id, revision=repo.revision, files_metadata=True, timeout=timeout_s
            ),
            str(repo),
        )
    except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
        raise hub_error(error, repo, "cannot be listed") from error
    commit = info.sha or "main"
    headers = build_hf_headers(library_name="quintic", library_version=__version__)
    files = {}
    for entry in info.siblings or []:
        if entry.lfs is not None:
            size, checksum = entry.lfs.size, f"sha256:{entry.lfs.sha256}"
        else:
            size, checksum = entry.size or 0, f"git:{entry.blob_id}"
        url = repo.file_url(entry.rfilename, commit)
        name = posixpath.basename(entry.rfilename)
        if name in files and split_of(name) is not None:
            raise QuinticError(f"{repo} has two files named {name}: fetch them one by one")
        # The ones at the root win: a manifest in a subfolder is not that of the dataset.
        if name not in files or "/" not in entry.rfilename:
            files[name] = RemoteFile(name, url, size, checksum, commit, headers)
    wanted = _select(files, train_shards, str(repo))
    manifest = None
    if MANIFEST_FILE in files:
        file = files[MANIFEST_FILE]
        manifest = _read_manifest(_get(file.url, pacer, file.headers).content, file.url)
    return Listing([files[name] for name in wanted], _shards(files), manifest, commit)


def _list_web(address: str, train_shards: int | None, pacer: Pacer) -> Listing:
    """A manifest, or a page with links to shards, or a text with a name or an address a line."""
    answer = _get(address, pacer)
    base = answer.url  # after redirects
    manifest = None
    if base.path.endswith(".json"):
        manifest = _read_manifest(answer.content, address)
        links = _manifest_files(manifest)
    elif "html" in answer.headers.get("Content-Type", ""):
        links = _Links.of(answer.text)
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
        manifest = _read_manifest(_get(beside, pacer).content, beside)
    checksums = {r.file: f"sha256:{r.sha256}" for r in manifest.shards} if manifest else {}
    with ThreadPoolExecutor(8) as pool:
        files = pool.map(
            lambda name: _web_file(name, str(urls[name]), checksums.get(name), pacer), wanted
        )
        return Listing(list(files), _shards(urls), manifest, None)


def _web_file(name: str, url: str, checksum: str | None, pacer: Pacer) -> RemoteFile:
    headers = _get(url, pacer, method="HEAD").headers
    size = headers.get("Content-Length", "")
    if not size.isdecimal():
        raise QuinticError(
            f"{url} cannot be fetched: its server does not say how long it is; download it by hand"
        )
    version = headers.get("ETag") or headers.get("Last-Modified") or ""
    return RemoteFile(name, url, int(size), checksum, version, {})


def _get(
    url: str, pacer: Pacer, headers: dict[str, str] | None = None, method: str = "GET"
) -> httpx2.Response:
    """A small answer as a whole."""

    def request() -> httpx2.Response:
        response = get_session().request(
            method,
            url,
            headers={**(headers or {}), "Accept-Encoding": "identity"},
            timeout=pacer.retry.timeout_s,
        )
        response.raise_for_status()
        return response

    try:
        return pacer.patiently(request, url)
    except OfflineModeIsEnabled as error:
        raise QuinticError(f"{url} cannot be fetched: HF_HUB_OFFLINE is set; unset it") from error
    except httpx2.HTTPStatusError as error:
        status = error.response.status_code
        what = {401: "denies permission", 403: "denies permission", 404: "has no such file"}
        raise QuinticError(
            f"{url} cannot be fetched: the server {what.get(status, 'refuses')} (HTTP {status}); "
            "check the address"
        ) from error
    except httpx2.HTTPError as error:
        raise QuinticError(
            f"{url} cannot be fetched: its server cannot be reached ({one_line(error)}); check the "
            "address and the network"
        ) from error


def _select(names: Iterable[str], train_shards: int | None, source: str) -> list[str]:
    """The names wanted of those on offer, tokenizer and validation first."""
    names = sorted(names)
    train, val = (
        [name for name in names if name.endswith(".bin") and split_of(name) == split]
        for split in ("train", "val")
    )
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
    tokenizer = [name for name in names if name == TOKENIZER_FILE]
    return tokenizer + val + train[:train_shards]


def _shards(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(".bin") and split_of(name) is not None]


def _manifest_files(manifest: Manifest) -> list[str]:
    own = [TOKENIZER_FILE] if manifest.tokenizer == TOKENIZER_FILE else []
    return own + [record.file for record in manifest.shards]


def _read_manifest(content: bytes, url: str) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST_FILE).write_bytes(content)
        try:
            return Manifest.read(Path(folder))
        except QuinticError as error:
            raise QuinticError(str(error).replace(str(Path(folder) / MANIFEST_FILE), url)) from None


class _Links(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    @classmethod
    def of(cls, page: str) -> list[str]:
        parser = cls()
        parser.feed(page)
        return parser.found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]
