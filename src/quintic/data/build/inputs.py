"""The input arguments of `quintic data build` to the files that they name."""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from quintic.data.build.text_files import READABLE, TextFile, kind_and_packing, unreadable
from quintic.errors import QuinticError, counted


def find_text_files(inputs: Sequence[str], leave_out: Path) -> tuple[list[TextFile], list[str]]:
    """Return the files that input arguments name, in order and each once, and notes for the user.

    Arguments are files, folders, glob patterns, or hub:OWNER/NAME[@REVISION][:CONFIG]. Folders are
    searched to their ends, by name, without hidden files, and without the folder `leave_out`. A
    bare .json is read only if it is named: in folders they are settings more often than text. Empty
    files are passed over too. The notes say how many were.

    Raises `QuinticError` for an argument that names nothing or a file of another kind, for a folder
    that cannot be read, and for what the hub refuses.
    """
    found: dict[object, TextFile] = {}
    notes: list[str] = []
    for argument in inputs:
        if argument.startswith("hub:"):
            # Its client takes a while to import.
            from quintic.data.build.hub_text_files import hub_text_files

            found.update({file.name: file for file in hub_text_files(argument)})
            continue
        try:
            paths, passed_over = _paths(argument, leave_out.resolve())
        except OSError as error:
            raise unreadable(argument, error) from error
        if passed_over:
            kinds = counted(passed_over, "file of another kind", "files of other kinds")
            notes.append(f"{argument}: {kinds} left out")
        # A file that is named itself is taken at its word.
        named = paths == [Path(argument).expanduser()]
        empty = 0
        for path in paths:
            file = _text_file(path)
            if file.size or named or not path.is_file():
                # Not Path.resolve, which refuses a link to itself.
                found.setdefault(os.path.realpath(path), file)
            else:
                empty += 1
        if empty:
            notes.append(f"{argument}: {counted(empty, 'empty file')} left out")
    return list(found.values()), notes


def _paths(argument: str, leave_out: Path) -> tuple[list[Path], int]:
    """Return the files to read that an argument names, and how many others it passes over."""
    path = Path(argument).expanduser()
    if path.is_file():
        if kind_and_packing(path.name) is None:
            raise QuinticError(
                f"input {argument} is of no kind that can be read: there are {READABLE}; rename "
                f"it if it is one of these"
            )
        return [path], 0
    places = [path] if path.is_dir() else _glob(path)
    if places and all(os.path.realpath(place) == str(leave_out) for place in places):
        raise QuinticError(
            f"input {argument} is also --out: a dataset cannot be built among its own texts; name "
            f"another folder with --out"
        )
    files = list(
        chain.from_iterable(
            _walk(place, leave_out) if place.is_dir() else [place] for place in places
        )
    )
    wanted = [f for f in files if kind_and_packing(f.name) and f.suffix.lower() != ".json"]
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
    """Return the files of a folder and its subfolders, by path."""

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


def _text_file(path: Path) -> TextFile:
    kind = kind_and_packing(path.name)
    assert kind is not None
    try:
        size = path.stat().st_size
    except OSError as error:
        if not path.is_symlink():
            raise unreadable(str(path), error) from error
        size = 0  # leads nowhere, which reading it will say
    return TextFile(str(path), *kind, size, path)
