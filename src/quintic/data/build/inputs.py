"""The input arguments of `quintic data build` to the files that they name."""

import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from quintic.data.build.sources.json_values import json_layout
from quintic.data.build.sources.recognise import (
    Unnamed,
    is_binary,
    recognise,
    recognise_unnamed,
)
from quintic.data.build.standard_input import STDIN, standard_input
from quintic.data.build.text_files import (
    PACKED_SUFFIXES,
    READABLE,
    FileKind,
    TextFile,
    kind_and_packing,
    unreadable,
)
from quintic.data.document import text_problem
from quintic.errors import QuinticError, counted, in_command

_ONLY_IF_NAMED = (".json", ".csv", ".tsv")
CACHED = re.compile(r"(?:cache|tmp)[-\w]*\.arrow")
"""What datasets' map and filter left."""
_KINDS = 5  # are listed of what is left out


def find_text_files(
    inputs: Sequence[str], leave_out: Path, kind: FileKind | None = None
) -> tuple[list[TextFile], list[str]]:
    """Return the files that input arguments name, in order and each once, and notes for the user.

    Arguments are files, folders, glob patterns, hub:OWNER/NAME[@REVISION][:CONFIG], or - for
    standard input. Folders are searched to their ends, by name, without hidden files, and without
    the folder `leave_out`. A bare .json, .csv or .tsv is read only if it is named, or a pattern
    ends so: in folders they are settings and lists more often than text. Of a folder of datasets'
    `DatasetDict` its split `train` is read where it has one, and no file of its cache of results.
    A file whose name says nothing but how it is packed is what its first bytes say, or `kind`; text
    it is only where it is named itself, and then also with a suffix that nobody knows. Empty files
    are passed over too. The notes say what was, and which files are something else than their name
    says.

    Raises `QuinticError` for an argument that names nothing or a file of another kind, for a folder
    that cannot be read, for what the hub refuses, and for a `kind` that no file needs.
    """
    found: dict[object, TextFile] = {}
    notes: list[str] = []
    any_unnamed = False
    for argument in inputs:
        if argument.startswith("hub:"):
            # Its client takes a while to import.
            from quintic.data.build.hub_text_files import hub_text_files

            found.update({file.name: file for file in hub_text_files(argument)})
            continue
        if argument == STDIN:
            if STDIN not in found:
                found[STDIN], note = standard_input(kind)
                notes.append(note)
                any_unnamed = True
            continue
        try:
            paths = _paths(argument, leave_out.resolve(), kind, notes)
        except OSError as error:
            raise unreadable(argument, error) from error
        # A file that is named itself is taken at its word.
        named = list(paths) == [Path(argument).expanduser()]
        empty = 0
        for path, unnamed in paths.items():
            file, said = _text_file(path, unnamed)
            notes += said
            any_unnamed |= unnamed is not None
            if file.size or named or not path.is_file():
                # Not Path.resolve, which refuses a link to itself.
                found.setdefault(os.path.realpath(path), file)
            else:
                empty += 1
        if empty:
            notes.append(f"{argument}: {counted(empty, 'empty file')} left out")
    if kind is not None and not any_unnamed:
        raise QuinticError(
            "--kind is for standard input and for files whose names do not say what they are, and "
            "the input has none: leave it out"
        )
    return list(found.values()), notes


def _paths(
    argument: str, leave_out: Path, kind: FileKind | None, notes: list[str]
) -> dict[Path, Unnamed | None]:
    """Return the files to read that an argument names, with what they are where their names do not
    say it, and note what it passes over."""
    path = Path(argument).expanduser()
    if not argument:
        raise QuinticError(
            "an input is empty: name a file, a folder or a pattern; . is this folder"
        )
    if path.exists() and not path.is_dir() and not path.is_file():
        raise QuinticError(
            f"input {argument} is a pipe or a device, which is read once: give it to standard "
            f"input, as in quintic data build - < {in_command(argument)}"
        )
    if path.is_file():
        is_known = kind_and_packing(path.name) is not None
        return {path: None if is_known else _of_no_known_name(path, argument, kind)}
    places = [path] if path.is_dir() else _glob(path)
    if places and all(os.path.realpath(place) == str(leave_out) for place in places):
        raise QuinticError(
            f"input {argument} is also --out: a dataset cannot be built among its own texts; name "
            f"another folder with --out"
        )
    files = list(
        chain.from_iterable(
            _walk(place, leave_out, notes) if place.is_dir() else [place] for place in places
        )
    )
    wanted: dict[Path, Unnamed | None] = {}
    for file in files:
        if _is_wanted(file, argument):
            wanted[file] = None
        elif unnamed := _among_others(file, kind):
            wanted[file] = unnamed
    if not wanted:
        what = "holds nothing that can be read" if places else "does not exist"
        raise QuinticError(
            f"input {argument} {what}: name files ({READABLE}), folders or patterns of them, or "
            f"hub:OWNER/NAME"
        )
    if passed_over := [file for file in files if file not in wanted]:
        kinds = counted(len(passed_over), "file of another kind", "files of other kinds")
        notes.append(f"{argument}: {kinds} left out: {files_by_kind(passed_over)}")
    return wanted


def _is_wanted(file: Path, argument: str) -> bool:
    """Return whether a file that a folder or pattern holds is read."""
    suffix = file.suffix.lower()
    if suffix in _ONLY_IF_NAMED and not argument.lower().endswith(suffix):
        return False
    return kind_and_packing(file.name) is not None and not CACHED.fullmatch(file.name)


def _of_no_known_name(path: Path, argument: str, kind: FileKind | None) -> Unnamed:
    """Return what a file is that is named itself.

    Raises `QuinticError` where it is neither text nor what is known by its first bytes.
    """
    found = recognise_unnamed(path, argument, kind)
    if problem := text_problem(found.head):
        raise QuinticError(f"input {argument} is {problem}")
    if is_binary(found.head) or not path.stat().st_size:
        raise QuinticError(
            f"input {argument} is of no kind that can be read: there are {READABLE}; rename it if "
            f"it is one of these"
        )
    return found


def _among_others(file: Path, kind: FileKind | None) -> Unnamed | None:
    """Return what a file of a folder or a pattern is whose name says nothing but how it is packed.

    None where it is text, unless `kind` says so: there are notes and scripts without a suffix; nor
    is an object over many lines taken for documents, which is more often settings, or what begins
    with _, as Spark, Dask and fastparquet name what they keep beside tables (_metadata).
    """
    suffix = file.suffix.lower()
    if (suffix and suffix not in PACKED_SUFFIXES) or file.name.startswith("_"):
        return None
    if kind_and_packing(file.name) or not file.is_file():
        return None
    try:
        found = recognise_unnamed(file, str(file), kind)
    except (QuinticError, OSError):
        return None
    is_vague = found.kind == "text" or (
        found.kind == "lines" and json_layout(found.head) != "lines"
    )
    return None if is_binary(found.head) or (is_vague and kind is None) else found


def files_by_kind(files: Sequence[Path]) -> str:
    """Return the kinds of files by their suffixes, the most frequent first, with an example."""
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(file.suffix.lower() or "without a suffix", []).append(file)
    most = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    listed = [f"{len(found):,} {suffix} ({found[0].name})" for suffix, found in most[:_KINDS]]
    return ", ".join(listed) + (f" and {len(most) - _KINDS} more kinds" * (len(most) > _KINDS))


def _glob(pattern: Path) -> list[Path]:
    if not any(character in str(pattern) for character in "*?["):
        return []
    root = Path(pattern.anchor)
    found = root.glob(str(pattern.relative_to(root)))
    return sorted(path for path in found if not path.name.startswith("."))


def _walk(folder: Path, leave_out: Path, notes: list[str]) -> list[Path]:
    """Return the files of a folder and its subfolders, by path."""

    def denied(error: OSError) -> None:
        raise unreadable(str(error.filename), error) from error

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=denied):
        if Path(place).resolve() == leave_out:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        if "dataset_dict.json" in files and "train" in folders and len(folders) > 1:
            # The other splits are for evaluation, as on the hub.
            others = ", ".join(sorted(set(folders) - {"train"}))
            notes.append(f"{place} is a DatasetDict: only its split train is read, not {others}")
            folders[:] = ["train"]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _text_file(path: Path, unnamed: Unnamed | None) -> tuple[TextFile, list[str]]:
    """Return a file as it is read, and a note where its name says something else or nothing."""
    if unnamed is not None:
        note = f"{path} is read as {unnamed.words}, which its name does not say"
        size = path.stat().st_size
        return TextFile(str(path), unnamed.kind, unnamed.packing, size, path), [note]
    named = kind_and_packing(path.name)
    assert named is not None
    try:
        size = path.stat().st_size
        kind, packing, notes = recognise(path, str(path), *named)
    except OSError as error:
        if not path.is_symlink():
            raise unreadable(str(path), error) from error
        return TextFile(str(path), *named, 0, path), []  # leads nowhere, which reading it says
    return TextFile(str(path), kind, packing, size, path), notes
