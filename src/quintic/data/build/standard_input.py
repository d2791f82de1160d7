"""Standard input as a file of text: it is kept aside, since a file is read more than once."""

import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintic.data.build.sources.packing import unpacked
from quintic.data.build.sources.recognise import recognise
from quintic.data.build.sources.utf16 import as_utf8, is_utf16
from quintic.data.build.text_files import TextFile
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


def standard_input() -> tuple[TextFile, str]:
    """Read standard input to its end and return it as a file, and a note on what it is taken for.

    It has no name that says so: tables and packed files are known by their first bytes, JSON by its
    bracket, and everything else is text. Raises `QuinticError` where it is closed or holds nothing,
    and as `recognise` and `unpacked` do.
    """
    if sys.stdin is None:
        raise QuinticError("standard input is closed: pipe the text in, or name a file")
    spool = tempfile.NamedTemporaryFile(prefix="quintic-")  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, spool, 1 << 20)
    spool.flush()
    size, path, name = spool.tell(), Path(spool.name), "standard input"
    if not size:
        raise QuinticError("standard input is empty: pipe the text in, or name a file")
    kind, packing, _ = recognise(path, name, "text", "")
    of = ""
    if kind == "text":
        with path.open("rb") as stream:
            blocks = iter(lambda: stream.read(1 << 16), b"")
            if packing:
                blocks = unpacked(stream, packing, name, size, 1 << 16)
            raw = next(filter(None, blocks), b"")
        head, of = b"".join(as_utf8(iter([raw]))), " of UTF-16" * is_utf16(raw)
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")):
            kind = "lines"
    what = {"text": "text", "lines": "JSON", "rows": "parquet", "arrow": "Arrow"}[kind]
    return StandardInput(name, kind, packing, size, path, spool), f"{name} is read as {what}{of}"
