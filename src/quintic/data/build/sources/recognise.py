"""What a file is by its first bytes, where its name says something else or nothing."""

import codecs
import os
import re
from pathlib import Path
from typing import NamedTuple

from quintic.data.build.sources.packing import PACKINGS, packing_of, unpacked
from quintic.data.build.sources.utf16 import as_utf8, is_utf16
from quintic.data.build.text_files import PACKED_SUFFIXES, TABLES, FileKind
from quintic.data.document import archive_problem
from quintic.errors import QuinticError

_BEGINS: dict[bytes, tuple[FileKind, str]] = {
    b"PAR1": ("rows", "parquet"),
    b"ARROW1\0\0": ("arrow", "Arrow"),
}
_LFS_BEGIN = b"version https://git-lfs.github.com/spec/"
_HEAD_BYTES = 512
_WORDS: dict[FileKind, str] = {
    "text": "text",
    "lines": "JSON",
    "rows": "parquet",
    "arrow": "Arrow",
    "csv": "CSV",
    "tsv": "TSV",
    "warc": "WARC",
}
_CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
# An object, or an array of them: a bracket alone may begin a text.
_JSON_BEGIN = re.compile(rb'\s*(?:\{\s*["}]|\[\s*[{\]])')


class Unnamed(NamedTuple):
    """What a file is whose name does not say it: the kind, the packing, both in words, and the
    first of its text, as UTF-8, none where it is a table."""

    kind: FileKind
    packing: str
    words: str
    head: bytes


def recognise(
    path: Path, name: str, kind: FileKind, packing: str
) -> tuple[FileKind, str, list[str]]:
    """Return the kind and the packing of a file, and a note where its name says something else.

    A file that is not there, or not packed though its name says so, keeps what its name says:
    reading it tells what is wrong. Raises `QuinticError` for a packed table, which is read from its
    end, an archive in the place of one, and a pointer of Git LFS, and OSError where the file cannot
    be read.
    """
    if not path.is_file():
        return kind, packing, []
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if kind in TABLES and (problem := archive_problem(head)):
        raise QuinticError(f"input {name} is {problem}")
    if head.startswith(_LFS_BEGIN) and b"\noid sha256:" in head:
        raise QuinticError(
            f"input {name} is a pointer of Git LFS and not the file: git lfs pull downloads that"
        )
    for begin, (table, table_name) in _BEGINS.items():
        if head.startswith(begin) and (kind, packing) != (table, "") and _ends_so(path, begin):
            return table, "", [f"{name} is {table_name} and read as that"]
    notes = []
    suffix = packing_of(head)
    if suffix and suffix != packing:
        how = PACKINGS[suffix].name
        if kind in TABLES:
            raise QuinticError(
                f"input {name} is packed by {how}, and a table is read from its end: unpack it "
                f"first"
            )
        packing, notes = suffix, [f"{name} is packed by {how}, and read as that"]
    if kind not in TABLES and is_utf16(_unpacked_head(path, head, packing)):
        notes.append(f"{name} is UTF-16, and read as that")
    return kind, packing, notes


def recognise_unnamed(path: Path, name: str, kind: FileKind | None = None) -> Unnamed:
    """Return what a file is by its first bytes alone; `kind` is what it is said to be, None where
    nobody says it.

    Tables, packings, JSON and WARC are known, and everything else is taken for text. Raises
    `QuinticError` and OSError as `recognise` does, and `QuinticError` for a table that is packed.
    """
    named = PACKED_SUFFIXES.get(path.suffix.lower(), "")
    table, packing, _ = recognise(path, name, "text", named)
    if table != "text":
        return Unnamed(table, packing, _WORDS[table], b"")
    with path.open("rb") as stream:
        raw = _unpacked_head(path, stream.read(_HEAD_BYTES), packing)
    head = b"".join(as_utf8(iter([raw]))).removeprefix(codecs.BOM_UTF8)
    inner = next((words for begin, (_, words) in _BEGINS.items() if head.startswith(begin)), "")
    if packing and inner and is_binary(head):
        raise QuinticError(
            f"input {name} is packed {inner}, and a table is read from its end: unpack it first"
        )
    if kind is None:
        is_warc = head.startswith(b"WARC/1.")
        kind = "lines" if _JSON_BEGIN.match(head) else "warc" if is_warc else "text"
    return Unnamed(kind, packing, _WORDS[kind] + " of UTF-16" * is_utf16(raw), head)


def is_binary(head: bytes) -> bool:
    """Return whether what begins so has characters that no text has."""
    return len(head.translate(None, _CONTROLS)) < len(head)


def _unpacked_head(path: Path, head: bytes, packing: str) -> bytes:
    """Return the first bytes of what a file holds; none where it is damaged: reading tells."""
    if not packing:
        return head
    try:
        with path.open("rb") as stream:
            return next(filter(None, unpacked(stream, packing, str(path), 0, _HEAD_BYTES)), b"")
    except QuinticError:
        return b""


def _ends_so(path: Path, begin: bytes) -> bool:
    """Return whether a table ends as it begins, which a text that begins so does not."""
    end = begin.rstrip(b"\0")
    with path.open("rb") as stream:
        stream.seek(-len(end), os.SEEK_END)
        return stream.read() == end
