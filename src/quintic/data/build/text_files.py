"""A file of text, wherever it comes from, and what kind of file it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quintic.errors import QuinticError, reason, way_out

FileKind = Literal["text", "lines", "rows"]

KINDS: dict[str, FileKind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".json": "lines",
    ".parquet": "rows",
}
PACKINGS = (".gz", ".zst")
READABLE = ".txt, .md, .jsonl and .json, also packed as .gz or .zst, and .parquet"

OnDownload = Callable[[float], None]
"""Called with the fraction of a file that has arrived."""


@dataclass
class TextFile:
    """A file that holds documents.

    `name` is as messages show it; `kind` is "text", a document or several with separators between,
    "lines", JSON objects, or "rows", parquet; `packing` is "", ".gz" or ".zst"; `size` is in bytes,
    as the file lies there.
    """

    name: str
    kind: FileKind
    packing: str
    size: int
    path: Path

    def local_path(self, on_download: OnDownload | None = None) -> Path:
        """Return where it can be read; a file from elsewhere is downloaded first."""
        return self.path

    def begin_download(self) -> None:
        """Begin to download it in the background, where it is elsewhere: it is next."""


def kind_and_packing(name: str) -> tuple[FileKind, str] | None:
    """Return the kind and the packing of a file, by its name; None where it cannot be read."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in PACKINGS else ""
    kind = KINDS.get(suffixes[-1]) if suffixes else None
    # Parquet is packed inside, and is read from its end.
    return None if kind is None or (kind == "rows" and packing) else (kind, packing)


def unreadable(name: str, error: OSError) -> QuinticError:
    """Return the error for an input that the system does not let us read."""
    return QuinticError(f"input {name} cannot be read ({reason(error)}): {way_out(error)}")
