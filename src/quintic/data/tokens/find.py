"""The kind of token files in a folder, and which split each is of."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from quintic.data.manifest import Split
from quintic.data.tokens.datatrove import find_datatrove
from quintic.data.tokens.id_lists import find_id_lists
from quintic.data.tokens.litdata import find_litdata
from quintic.data.tokens.llmc import find_llmc
from quintic.data.tokens.mds import find_mds
from quintic.data.tokens.megatron import find_megatron
from quintic.data.tokens.nanogpt import find_nanogpt
from quintic.data.tokens.npy import find_npy
from quintic.data.tokens.token_file import ID_COLUMNS, TokenFile
from quintic.errors import QuinticError, reason, way_out


class TokenKind(NamedTuple):
    """A layout: its name, how the files of a folder are found by their names, and what its own
    reader does not show of them."""

    name: str
    find: Callable[[Path, list[str]], list[TokenFile]]
    note: str = ""


# In this order: a .bin that has an index is no stream of ids.
KINDS = (
    TokenKind("Megatron", find_megatron),
    TokenKind(
        *("litdata", find_litdata),
        note="litdata's own reader drops the rest of each chunk below its block size",
    ),
    TokenKind("MDS", find_mds),
    TokenKind(
        *("datatrove", find_datatrove),
        note="datatrove's own reader drops the tail of each file below its sequence length",
    ),
    TokenKind("build-nanogpt", find_npy),
    TokenKind("llm.c", find_llmc),
    TokenKind("nanoGPT", find_nanogpt),
    TokenKind("Hugging Face datasets", find_id_lists),
)

_SPLIT = re.compile(r"(?:^|[/._-])(train|val|valid|validation|test)(?=$|[/._-])", re.IGNORECASE)


class FoundTokens(NamedTuple):
    """The token files of a folder, of one kind: those that name a split, or else all as "all"; and
    notes for the user."""

    kind: TokenKind
    splits: dict[Split | str, list[TokenFile]]
    notes: list[str]


ALL = "all"
"""Stands for the split of files of which none says what it is for."""


def find_tokens(source: Path) -> FoundTokens:
    """Find the token files in a folder and below, by path; or the one that is named itself.

    Files for testing are left out. Raises `QuinticError` where there are none, several kinds, or
    one that is damaged.
    """
    try:
        kind, files = _find(source)
    except OSError as error:
        where = error.filename or source
        raise QuinticError(f"{where} cannot be read ({reason(error)}): {way_out(error)}") from error
    notes = [f"{kind.note}; here are all"] if kind.note else []
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


def _find(source: Path) -> tuple[TokenKind, list[TokenFile]]:
    if not source.exists():
        raise QuinticError(f"{source} does not exist: name a folder of token files, or one of them")
    found: dict[str, list[TokenFile]] = {}
    all_names: list[str] = []
    for place, folders, names in os.walk(source if source.is_dir() else source.parent):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if not source.is_dir():
            folders.clear()
            beside = {source.stem, source.name}
            names = [n for n in names if n == source.name or Path(n).stem in beside]
        names.sort()
        all_names += names
        for kind in KINDS:
            if files := kind.find(Path(place), names):
                found.setdefault(kind.name, []).extend(files)
                break
    if len(found) > 1:
        raise QuinticError(
            f"{source} has token files of {' and of '.join(found)}: name one folder for each"
        )
    if not found:
        raise QuinticError(_nothing(source, all_names))
    kind = next(kind for kind in KINDS if kind.name in found)
    return kind, found[kind.name]


def _nothing(source: Path, names: list[str]) -> str:
    if tables := [name for name in names if name.endswith((".parquet", ".arrow", ".feather"))]:
        return (
            f"{source} has tables such as {tables[0]}, without lists of integers in a column "
            f"{' or '.join(ID_COLUMNS)}, or in the only one: quintic data build reads texts"
        )
    if any(name.endswith((".jsonl", ".txt")) for name in names):
        return f"{source} has text rather than tokens: quintic data build {source} reads that"
    return (
        f"{source} has no token files of {', '.join(kind.name for kind in KINDS)}: name the folder "
        f"that they lie in"
    )


def _split(path: str) -> Split | str:
    """Return the split that the last word of a path says which says one."""
    words = _SPLIT.findall(path)
    if not words:
        return ALL
    word = words[-1].lower()
    return {"train": "train", "test": "test"}.get(word, "val")
