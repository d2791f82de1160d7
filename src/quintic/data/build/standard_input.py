"""Standard input as a file of text: it is kept aside, since a file is read more than once."""

import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintic.data.build.sources.recognise import recognise_unnamed
from quintic.data.build.text_files import FileKind, TextFile
from quintic.errors import QuinticError

STDIN = "-"
"""Stands for standard input among the inputs."""


@dataclass
class StandardInput(TextFile):
    """The content of standard input, which is gone with `spool`, the temporary file it is in."""

    spool: Any

    def content(self, size: int) -> str:
        """Return a hash of all of it."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def standard_input(kind: FileKind | None) -> tuple[TextFile, str]:
    """Read standard input to its end and return it as a file, and a note on what it is taken for.

    It has no name that says so: its first bytes do, or `kind`. Raises `QuinticError` where it is
    closed or holds nothing, and as `recognise_unnamed` does.
    """
    if sys.stdin is None:
        raise QuinticError("standard input is closed: pipe the text in, or name a file")
    spool = tempfile.NamedTemporaryFile(prefix="quintic-")  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, spool, 1 << 20)
    spool.flush()
    size, path, name = spool.tell(), Path(spool.name), "standard input"
    if not size:
        raise QuinticError("standard input is empty: pipe the text in, or name a file")
    found = recognise_unnamed(path, name, kind)
    file = StandardInput(name, found.kind, found.packing, size, path, spool)
    return file, f"{name} is read as {found.words}"
