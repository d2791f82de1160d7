"""The kind of token files in a folder, and which split each is of."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from quintic.data.build.inputs import CACHED, files_by_kind
from quintic.data.manifest import Split
from quintic.data.tokens.datatrove import find_datatrove
from quintic.data.tokens.id_lists import find_id_lists
from quintic.data.tokens.json_index import INDEX
from quintic.data.tokens.litdata import find_litdata
from quintic.data.tokens.llmc import find_llmc
from quintic.data.tokens.mds import IdType, find_mds
from quintic.data.tokens.megatron import find_megatron
from quintic.data.tokens.nanogpt import find_nanogpt
from quintic.data.tokens.npy import find_npy
from quintic.data.tokens.token_file import ID_COLUMNS, TokenFile
from quintic.errors import QuinticError, counted, in_command, reason, way_out


class TokenKind(NamedTuple):
    """A layout: its name, how the files of a folder are found by their names, and what its own
    reader does not show of them."""

    name: str
    find: Callable[[Path, list[str]], list[TokenFile]]
    note: str = ""


def _kinds(dtype: IdType | None = None) -> tuple[TokenKind, ...]:
    """Return the layouts in the order in which they are looked for: a .bin that has an index is no
    stream of ids."""
    return (
        TokenKind("Megatron", find_megatron),
        TokenKind(
            *("litdata", find_litdata),
            note="litdata's own reader drops the rest of each chunk below its block size",
        ),
        TokenKind("MDS", partial(find_mds, dtype=dtype)),
        TokenKind(
            *("datatrove", find_datatrove),
            note="datatrove's own reader drops the tail of each file below its sequence length",
        ),
        TokenKind("build-nanogpt", find_npy),
        TokenKind("llm.c", find_llmc),
        TokenKind("nanoGPT", find_nanogpt),
        TokenKind("Hugging Face datasets", find_id_lists),
    )


_LOOKS_LIKE_TOKENS = re.compile(
    r".*\.(bin|idx|npy|mds(\.\w+)?|ds(\.index|\.metadata)?|parquet|arrow|feather)", re.IGNORECASE
)
# Megatron's shuffles, which it keeps beside its data or below, and what datasets' map left.
_KEPT_RESULTS = re.compile(
    rf".*(doc|document|sample|shuffle)_(idx|index)\.npy|{CACHED.pattern}", re.IGNORECASE
)
_NAMED = 3  # files in a message

_SPLIT = re.compile(r"(?:^|[/._-])(train|val|valid|validation|test)(?=$|[/._-])", re.IGNORECASE)


class FoundTokens(NamedTuple):
    """The token files of a folder, of one kind: those that name a split, or else all as "all"; and
    notes for the user."""

    kind: TokenKind
    splits: dict[Split | str, list[TokenFile]]
    notes: list[str]


ALL = "all"
"""Stands for the split of files of which none says what it is for."""


def find_tokens(source: Path, dtype: IdType | None = None) -> FoundTokens:
    """Find the token files in a folder and below, by path; or the one that is named itself.

    Files for testing are left out, and so are files that are plainly none. `dtype` is the type of
    ids that lie as bytes. Raises `QuinticError` where there are none, several kinds, one that is
    damaged, or one that looks like tokens and is none of the kind, and for a `dtype` that the kind
    has no use for.
    """
    try:
        kind, files, others = _find(source, dtype)
    except OSError as error:
        where = error.filename or source
        raise QuinticError(f"{where} cannot be read ({reason(error)}): {way_out(error)}") from error
    if dtype is not None and kind.name != "MDS":
        raise QuinticError(
            f"--dtype is for ids that lie as bytes, as in MDS, and {source} has those of "
            f"{kind.name}: leave it out"
        )
    notes = [f"{kind.note}; here are all"] if kind.note else []
    if others:
        kinds = counted(len(others), "file of another kind", "files of other kinds")
        notes.append(f"{source}: {kinds} left out: {files_by_kind(others)}")
    splits: dict[Split | str, list[TokenFile]] = {}
    root = source if source.is_dir() else source.parent
    for file in files:
        splits.setdefault(_split(file.path.relative_to(root).as_posix()), []).append(file)
    if left_out := splits.pop("test", []):
        notes.append(f"left out are files for testing: {left_out[0].path} and its like")
    unnamed = splits.pop(ALL, [])
    if unnamed and splits:
        raise QuinticError(
            f"{source} has files for training or validation and others, such as "
            f"{unnamed[0].path}: name one folder for each dataset"
        )
    if unnamed:
        splits[ALL] = unnamed
    if not splits:
        raise QuinticError(f"{source} has only files for testing: name the others")
    return FoundTokens(kind, splits, notes)


def _find(source: Path, dtype: IdType | None) -> tuple[TokenKind, list[TokenFile], list[Path]]:
    """Return the kind, its files, and the other files, of which none looks like tokens."""
    if not source.exists():
        raise QuinticError(f"{source} does not exist: name a folder of token files, or one of them")
    kinds = _kinds(dtype)
    found: dict[str, list[TokenFile]] = {}
    others: list[Path] = []
    for place, folders, names in os.walk(source if source.is_dir() else source.parent):
        if source.is_dir():
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            names = sorted(name for name in names if not name.startswith("."))
            shards = [name for name in names if not _KEPT_RESULTS.fullmatch(name)]
        else:
            folders.clear()
            shards = names = sorted(_with_companions(source.name) & set(names))
        claimed = {INDEX}
        for kind in kinds:
            if files := kind.find(Path(place), shards):
                found.setdefault(kind.name, []).extend(files)
                claimed.update(*(_with_companions(file.path.name) for file in files))
                break
        others += [Path(place, name) for name in names if name not in claimed]
    if len(found) > 1:
        raise QuinticError(
            f"{source} has token files of {' and of '.join(found)}: name one folder for each"
        )
    if not found:
        raise QuinticError(_nothing(source, others))
    kind = next(kind for kind in kinds if kind.name in found)
    _refuse_unread(kind, found[kind.name], others)
    return kind, found[kind.name], others


def _with_companions(name: str) -> set[str]:
    """Return a token file's name, and the names of files that belong to one of that name."""
    stem = Path(name).stem
    packed = {f"{name}.{suffix}" for suffix in ("zstd", "gz", "bz2")} if ".mds" in name else set()
    pair = {f"{stem}.idx", f"{stem}.bin"} if name.endswith((".bin", ".idx")) else set()
    return {name, *packed, *pair, f"{name}.index", f"{name}.metadata", "meta.pkl"}


def _refuse_unread(kind: TokenKind, files: list[TokenFile], others: list[Path]) -> None:
    """Raise `QuinticError` for files that look like tokens and are not among those of the kind."""
    unread = [
        path
        for path in others
        if _LOOKS_LIKE_TOKENS.fullmatch(path.name) and not _KEPT_RESULTS.fullmatch(path.name)
    ]
    if unread:
        named = ", ".join(map(str, unread[:_NAMED]))
        more = f" and {len(unread) - _NAMED} more" * (len(unread) > _NAMED)
        raise QuinticError(
            f"{named}{more} cannot be read as {kind.name}, as {files[0].path} can: copy or make "
            f"again what is damaged (llm.c's begin with its header, Megatron's .bin has its .idx, "
            f"index.json lists chunks and shards), and name one folder for each kind"
        )


def _nothing(source: Path, files: list[Path]) -> str:
    names = [path.name for path in files]
    if streams := [path for path in files if path.suffix == ".bin"]:
        return (
            f"{streams[0]} has no header of llm.c and no .idx of Megatron beside it, no index.json "
            f"lists it, and nanoGPT's are named train.bin and val.bin: copy or make it again, or "
            f"name it so"
        )
    if tables := [name for name in names if name.endswith((".parquet", ".arrow", ".feather"))]:
        return (
            f"{source} has tables such as {tables[0]}, without lists of integers in a column "
            f"{' or '.join(ID_COLUMNS)}, or in the only one: quintic data build reads texts"
        )
    if any(name.endswith((".jsonl", ".txt")) for name in names):
        build = f"quintic data build {in_command(source)}"
        return f"{source} has text rather than tokens: {build} reads that"
    return (
        f"{source} has no token files of {', '.join(kind.name for kind in _kinds())}: name the "
        f"folder that they lie in"
    )


def _split(path: str) -> Split | str:
    """Return the split that the last word of a path says which says one."""
    words = _SPLIT.findall(path)
    if not words:
        return ALL
    word = words[-1].lower()
    return {"train": "train", "test": "test"}.get(word, "val")
