"""A dataset of texts on the Hugging Face hub as sources: hub:OWNER/NAME[@REVISION][:CONFIG].

Files are downloaded one by one, each while the one before it is read, into the cache that
huggingface_hub keeps (HF_HOME), where an interrupted download continues and a second build finds
them.
"""

import fnmatch
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import DatasetInfo
from huggingface_hub.utils import disable_progress_bars, tqdm  # type: ignore[attr-defined]

from quintic import __version__
from quintic.data.build.text_files import READABLE, Arriving, Source, kind_of
from quintic.data.hub.client import HubRepo, endpoint, hub_api, hub_error
from quintic.errors import QuinticError

_SHOW_EVERY_S = 0.2

# The other splits are for evaluation: training on them would be a mistake that nobody sees.
_TRAIN_SPLIT = "train"
_OF_TRAINING = re.compile(r"(?:^|[/._-])train(?:[/._-]|$)")


class _Download:
    """A file that is being fetched by a thread, or was."""

    def __init__(self) -> None:
        self._bytes_done = 0
        self.result: Path | None = None
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None

    def begin(self, fetch: Callable[[type[tqdm]], Path]) -> None:
        """Begin, unless it was begun; `fetch` takes the class of its progress bar."""
        if self._thread is None:
            # Not waited for at the end: Ctrl-C would otherwise hang until gigabytes have come.
            self._thread = threading.Thread(
                target=self._run, args=(fetch,), name="download", daemon=True
            )
            self._thread.start()

    def wait(self, show: Callable[[int], None]) -> Path:
        """Where it is, once it is whole; calls `show` with the bytes that are there so far."""
        assert self._thread is not None
        while self._thread.is_alive():
            show(self._bytes_done)
            self._thread.join(_SHOW_EVERY_S)
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def arrived(self, bytes_done: int) -> None:
        """So much is there; the greatest counts."""
        self._bytes_done = max(self._bytes_done, bytes_done)

    def _run(self, fetch: Callable[[type[tqdm]], Path]) -> None:
        download = self

        class Bar(tqdm):
            """Shows nothing and tells how far it is; there may be several of one file."""

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self._bytes = int(options.get("initial") or 0)

            def update(self, n: float | None = 1) -> None:
                self._bytes += int(n or 0)
                download.arrived(self._bytes)

        try:
            self.result = fetch(Bar)
        except Exception as error:  # for the thread that waits
            self.error = error


@dataclass(frozen=True)
class HubTextFile(Source):
    """A file of a dataset repository.

    Attributes:
        repo: the repository.
        file: its path in the repository.
        commit: the commit it is taken from.
    """

    repo: HubRepo = field(kw_only=True)
    file: str = field(kw_only=True)
    commit: str = field(kw_only=True)
    _download: _Download = field(default_factory=_Download, init=False, compare=False, repr=False)

    def local(self, arriving: Arriving | None = None) -> Path:
        """Download the file, unless the cache has it."""
        self.prepare()

        def show(bytes_done: int) -> None:
            if arriving and bytes_done:
                arriving(min(1.0, bytes_done / max(1, self.size)))

        try:
            return self._download.wait(show)
        except (httpx2.HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise hub_error(error, self.repo, f"cannot be read ({self.file})") from error

    def prepare(self) -> None:
        """Begin to download the file; what goes wrong is told by `local`."""
        self._download.begin(self._fetch)

    def _fetch(self, bar: type[tqdm]) -> Path:
        return Path(
            hf_hub_download(
                self.repo.repo_id,
                self.file,
                repo_type="dataset",
                revision=self.commit,
                endpoint=endpoint(),
                library_name="quintic",
                library_version=__version__,
                tqdm_class=bar,
            )
        )


def hub_text_files(argument: str) -> list[Source]:
    """The files of a dataset's training split, by name.

    Args:
        argument: hub:OWNER/NAME[@REVISION][:CONFIG]. A configuration is one that the dataset's
            card declares, or else a folder of the repository. Without one it is the card's default,
            or all files where the card declares none.

    Raises:
        QuinticError: no such repository, configuration or files; or the hub cannot be reached.
    """
    disable_progress_bars()  # the build has its own
    place, _, config = argument.removeprefix("hub:").partition(":")
    repo = HubRepo.parse(f"hub:{place}")
    try:
        info = hub_api().dataset_info(repo.repo_id, revision=repo.revision, files_metadata=True)
    except (httpx2.HTTPError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise hub_error(error, repo, "cannot be listed") from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted = _files_of(repo, info, config or None, sorted(sizes))
    sources: list[Source] = []
    for name in wanted:
        named = kind_of(name)
        if named is not None and not name.endswith(".json") and not name.endswith(".md"):
            sources.append(
                HubTextFile(
                    f"{repo}/{name}",
                    *named,
                    sizes[name],
                    Path(name),
                    repo=repo,
                    file=name,
                    commit=info.sha or "main",
                )
            )
    if not sources:
        raise QuinticError(
            f"input {argument} holds nothing that can be read ({READABLE}): see {repo.page}"
        )
    return sources


def _files_of(repo: HubRepo, info: DatasetInfo, config: str | None, names: list[str]) -> list[str]:
    """The files of a configuration."""
    declared = _declared(info)
    if config is None:
        if not declared:
            return _of_training(names)
        default = [name for name, entry in declared.items() if entry.get("default")]
        for config in (*default, "default", *declared):
            if config in declared:
                break
    if config in declared:
        patterns = _patterns(declared[config])
        return [
            name
            for name in names
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
    found = _of_training([name for name in names if name.startswith(f"{config}/")])
    if not found:
        raise QuinticError(
            f"{repo} has no configuration {config!r}: it has "
            f"{', '.join(declared) or 'none'}; see {repo.page}"
        )
    return found


def _of_training(names: list[str]) -> list[str]:
    """The files whose names say that they are of the training split; or all if none says so."""
    return [name for name in names if _OF_TRAINING.search(name)] or names


def _declared(info: DatasetInfo) -> dict[str, dict[str, Any]]:
    """The configurations of the dataset's card, by name, in its order."""
    configs = info.card_data.get("configs") if info.card_data else None
    return {entry.get("config_name", "default"): entry for entry in configs or []}


def _patterns(config: dict[str, Any]) -> list[str]:
    """Patterns of the files of a configuration's training split.

    The card gives a pattern, a list of them, or a list of splits with one or several each.
    """
    data_files = config.get("data_files") or f"{config.get('data_dir', '').rstrip('/')}/**"
    entries = data_files if isinstance(data_files, list) else [data_files]
    patterns: list[str] = []
    for entry in entries:
        if isinstance(entry, dict):
            if entry.get("split", _TRAIN_SPLIT) != _TRAIN_SPLIT:
                continue
            entry = entry.get("path", [])
        patterns += entry if isinstance(entry, list) else [entry]
    # `**` spans folders, and so does a single star here.
    return [re.sub(r"\*\*/?", "*", pattern).lstrip("/") for pattern in patterns]
