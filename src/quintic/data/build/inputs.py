"""The input arguments of `quintic data build` to the files that they name."""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from quintic.data.build.text_files import READABLE, Source, kind_of, unreadable
from quintic.errors import QuinticError

HUB_PREFIX = "hub:"


def find_sources(inputs: Sequence[str], leave_out: Path) -> tuple[list[Source], list[str]]:
    """The files that input arguments name, in order; each file once.

    Args:
        inputs: files, folders, glob patterns, or hub:OWNER/NAME[:CONFIG]. Folders are searched to
            their ends, by name, without hidden files. A bare .json is read only if it is named:
            in folders they are settings more often than text.
        leave_out: a folder to stay out of.

    Returns:
        The sources, and what a user should know of what was passed over.

    Raises:
        QuinticError: an argument that names nothing, or a file of another kind; a folder that
            cannot be read; the hub's errors.
    """
    sources: dict[object, Source] = {}
    notes: list[str] = []
    for argument in inputs:
        if argument.startswith(HUB_PREFIX):
            # Its client takes a while to import.
            from quintic.data.hub.text_files import hub_text_files

            sources.update({source.name: source for source in hub_text_files(argument)})
            continue
        try:
            files, passed_over = _files(argument, leave_out.resolve())
        except OSError as error:
            raise unreadable(argument, error) from error
        if passed_over:
            notes.append(f"{argument}: {passed_over} files of other kinds are left out")
        for path in files:
            sources.setdefault(path.resolve(), _local_source(path))
    return list(sources.values()), notes


def _files(argument: str, leave_out: Path) -> tuple[list[Path], int]:
    """The files to read that an argument names, and how many others it passes over."""
    path = Path(argument).expanduser()
    if path.is_file():
        if kind_of(path.name) is None:
            raise QuinticError(
                f"input {argument} is of no kind that can be read: there are {READABLE}; rename "
                f"it if it is one of these"
            )
        return [path], 0
    places = [path] if path.is_dir() else _glob(path)
    files = list(
        chain.from_iterable(
            _walk(place, leave_out) if place.is_dir() else [place] for place in places
        )
    )
    wanted = [file for file in files if kind_of(file.name) and file.suffix.lower() != ".json"]
    if not wanted:
        what = "holds nothing that can be read" if places else "does not exist"
        raise QuinticError(
            f"input {argument} {what}: name files ({READABLE}), folders or patterns of them, or "
            f"hub:OWNER/NAME"
        )
    return wanted, len(files) - len(wanted)


def _glob(pattern: Path) -> list[Path]:
    if not any(character in str(pattern) for character in "*?["):
        return []
    root = Path(pattern.anchor)
    found = root.glob(str(pattern.relative_to(root)))
    return sorted(path for path in found if not path.name.startswith("."))


def _walk(folder: Path, leave_out: Path) -> list[Path]:
    """The files of a folder and its subfolders, by path."""

    def denied(error: OSError) -> None:
        raise unreadable(str(error.filename), error) from error

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=denied):
        if Path(place).resolve() == leave_out:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _local_source(path: Path) -> Source:
    named = kind_of(path.name)
    assert named is not None
    try:
        return Source(str(path), *named, path.stat().st_size, path)
    except OSError as error:
        raise unreadable(str(path), error) from error
