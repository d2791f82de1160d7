"""The files of a dataset of texts on the Hugging Face hub: hub:OWNER/NAME[@REVISION][:CONFIG]."""

import re
from concurrent.futures import Future, wait
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event
from typing import Any

from quintic.data.background import in_background
from quintic.data.build.sources.recognise import recognise
from quintic.data.build.text_files import READABLE, OnDownload, TextFile, kind_and_packing
from quintic.data.hub.client import HubFile, HubRepo
from quintic.errors import QuinticError

_SHOW_EVERY_S = 0.2

# The other splits are for evaluation: training on them would be a mistake that nobody sees.
_TRAIN_SPLIT = "train"
_TRAIN_NAME = re.compile(r"(?:^|[/._-])train(?:[/._-]|$)")


@dataclass
class HubTextFile(TextFile):
    """A file at `path` of a dataset repository, as it is in a commit."""

    repo: HubRepo
    commit: str
    checksum: str
    _download: Future[Path] | None = None
    _bytes_done: int = 0

    def content(self, size: int) -> str:
        """Return the checksum that the hub has of it."""
        return self.checksum

    def begin_download(self) -> None:
        """Begin to download the file; what goes wrong is told by `local_path`."""
        if self._download is None:
            name, log, stopped = self.path.as_posix(), lambda line: None, Event()
            self._download = in_background(
                lambda: self.repo.download(name, self.commit, None, self._count, log, stopped)
            )

    def _count(self, bytes_done: int) -> None:
        self._bytes_done = bytes_done

    def local_path(self, on_download: OnDownload | None = None) -> Path:
        """Download the file, unless the cache has it, and return where it is.

        Raises `QuinticError` where the hub does not give it.
        """
        self.begin_download()
        assert self._download is not None
        while wait([self._download], _SHOW_EVERY_S).not_done:
            if on_download and self._bytes_done:
                on_download(min(1.0, self._bytes_done / max(1, self.size)))
        path = self._download.result()
        self.kind, self.packing, _ = recognise(path, self.name, self.kind, self.packing)
        return path


def hub_text_files(argument: str) -> list[TextFile]:
    """Return the files of a dataset's training split, by name.

    The configuration is one that the dataset's card declares, or else a folder of the repository.
    Without one it is the card's default, or all files where the card declares none.

    Raises `QuinticError` for no such repository, configuration or files, and where the hub cannot
    be reached.
    """
    place, _, config = argument.removeprefix("hub:").partition(":")
    repo = HubRepo.parse(f"hub:{place}")
    info = repo.info_or_cache(lambda line: None)
    entries = {entry.rfilename: entry for entry in info.siblings or []}
    configs = (info.card_data.get("configs") if info.card_data else None) or []
    declared = {entry.get("config_name", "default"): entry for entry in configs}
    found: list[TextFile] = []
    for name in _files_of_config(repo, declared, config or None, sorted(entries)):
        kind = kind_and_packing(name)
        if kind is not None and not name.endswith((".json", ".md")):
            commit, entry = info.sha or "main", entries[name]
            size, checksum = entry.size or 0, HubFile.of(entry).checksum
            file = HubTextFile(f"{repo}/{name}", *kind, size, Path(name), repo, commit, checksum)
            found.append(file)
    # Where there is something else, they are lists of files and results more often than text.
    found = [file for file in found if file.kind not in ("csv", "tsv")] or found
    if not found:
        raise QuinticError(
            f"input {argument} holds nothing that can be read ({READABLE}): see {repo.page}"
        )
    return found


def _files_of_config(
    repo: HubRepo, declared: dict[str, dict[str, Any]], config: str | None, names: list[str]
) -> list[str]:
    if config is None:
        if not declared:
            return _training_files(names)
        default = [name for name, entry in declared.items() if entry.get("default")]
        config = next(name for name in (*default, "default", *declared) if name in declared)
    if config in declared:
        patterns = _patterns(declared[config])
        return [n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns)]
    found = _training_files([name for name in names if name.startswith(f"{config}/")])
    if not found:
        raise QuinticError(
            f"{repo} has no configuration {config!r}: it has "
            f"{', '.join(declared) or 'none'}; see {repo.page}"
        )
    return found


def _training_files(names: list[str]) -> list[str]:
    """Return the files whose names say that they are for training; or all if none says so."""
    return [name for name in names if _TRAIN_NAME.search(name)] or names


def _patterns(config: dict[str, Any]) -> list[str]:
    """Return the patterns of the files of a configuration's training split.

    The card gives a pattern, a list of them, or a list of splits with one or several each.
    """
    data_files = config.get("data_files") or f"{config.get('data_dir', '').rstrip('/')}/**"
    patterns: list[str] = []
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        if isinstance(entry, dict):
            if entry.get("split", _TRAIN_SPLIT) != _TRAIN_SPLIT:
                continue
            entry = entry.get("path", [])
        patterns += entry if isinstance(entry, list) else [entry]
    # `**` spans folders, and so does a single star here.
    return [re.sub(r"\*\*/?", "*", pattern).lstrip("/") for pattern in patterns]
