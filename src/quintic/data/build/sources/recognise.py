"""What a file is by its first bytes, where its name says something else."""

import os
from pathlib import Path

from quintic.data.build.sources.packing import PACKINGS
from quintic.data.build.text_files import TABLES, FileKind
from quintic.data.document import archive_problem
from quintic.errors import QuinticError

_BEGINS: dict[bytes, tuple[FileKind, str]] = {
    b"PAR1": ("rows", "parquet"),
    b"ARROW1\0\0": ("arrow", "Arrow"),
}


def recognise(
    path: Path, name: str, kind: FileKind, packing: str
) -> tuple[FileKind, str, list[str]]:
    """Return the kind and the packing of a file, and a note where its name says something else.

    A file that is not there, or not packed though its name says so, keeps what its name says:
    reading it tells what is wrong. Raises `QuinticError` for a packed table, which is read from its
    end, and an archive in the place of one, and OSError where the file cannot be read.
    """
    if not path.is_file():
        return kind, packing, []
    with path.open("rb") as stream:
        head = stream.read(512)
    if kind in TABLES and (problem := archive_problem(head)):
        raise QuinticError(f"input {name} is {problem}")
    for begin, (table, table_name) in _BEGINS.items():
        if head.startswith(begin) and (kind, packing) != (table, "") and _ends_so(path, begin):
            return table, "", [f"{name} is {table_name} and read as that"]
    for suffix, how in PACKINGS.items():
        if head.startswith(how.begins) and packing != suffix and _is_packed(suffix, head):
            if kind in TABLES:
                raise QuinticError(
                    f"input {name} is packed by {how.name}, and a table is read from its end: "
                    f"unpack it first"
                )
            return kind, suffix, [f"{name} is packed by {how.name}, and read as that"]
    return kind, packing, []


def _ends_so(path: Path, begin: bytes) -> bool:
    """Return whether a table ends as it begins, which a text that begins so does not."""
    end = begin.rstrip(b"\0")
    with path.open("rb") as stream:
        stream.seek(-len(end), os.SEEK_END)
        return stream.read() == end


def _is_packed(suffix: str, head: bytes) -> bool:
    """Return whether a beginning that text could have too goes on as a packed file does."""
    return suffix != ".bz2" or head[4:10] == b"1AY&SY"
