"""A file of text, wherever it comes from, and what kind of file it is."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quintic.errors import QuinticError, reason, way_out

FileKind = Literal["text", "lines", "rows", "arrow", "csv", "tsv", "warc"]

KINDS: dict[str, FileKind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".json": "lines",
    ".ndjson": "lines",
    ".jsonlines": "lines",
    ".jl": "lines",
    ".parquet": "rows",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".wet": "warc",
    ".warc": "warc",
}
PACKED_SUFFIXES = {".gz": ".gz", ".zst": ".zst", ".zstd": ".zst", ".xz": ".xz", ".bz2": ".bz2"}
TABLES: tuple[FileKind, ...] = ("rows", "arrow")
READABLE = (
    f"{', '.join(suffix for suffix, kind in KINDS.items() if kind not in TABLES)}, also packed as "
    f"{', '.join(PACKED_SUFFIXES)}, and "
    f"{', '.join(suffix for suffix, kind in KINDS.items() if kind in TABLES)}"
)

# A larger file is told by pieces of it: a thousand files of many GB are named in seconds.
_HASHED_WHOLE_BYTES = 1 << 22
_PIECES, _PIECE_BYTES = 16, 1 << 16

OnDownload = Callable[[float], None]
"""Called with the fraction of a file that has arrived."""


@dataclass
class TextFile:
    """A file that holds documents.

    `name` is as messages show it; `kind` is "text", a document or several with separators between,
    "lines", JSON objects, "rows", parquet, or what else KINDS has; `packing` is "" or a value of
    PACKED_SUFFIXES; `size` is in bytes, as the file lies there.
    """

    name: str
    kind: FileKind
    packing: str
    size: int
    path: Path

    def local_path(self, on_download: OnDownload | None = None) -> Path:
        """Return where it can be read; a file from elsewhere is downloaded first."""
        return self.path

    def content(self, size: int) -> str:
        """Return a hash of its first `size` bytes, or of 16 pieces of them where they are more than
        4 MiB, the first and the last among them; "" for what is no file."""
        if not self.path.is_file():
            return ""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            if size <= _HASHED_WHOLE_BYTES:
                digest.update(file.read(size))
                return digest.hexdigest()
            for piece in range(_PIECES):
                file.seek(piece * (size - _PIECE_BYTES) // (_PIECES - 1))
                digest.update(file.read(_PIECE_BYTES))
        return digest.hexdigest()

    def begin_download(self) -> None:
        """Begin to download it in the background, where it is elsewhere: it is next."""


def kind_and_packing(name: str) -> tuple[FileKind, str] | None:
    """Return the kind and the packing of a file, by its name; None where it cannot be read."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    packing = (
        PACKED_SUFFIXES[suffixes.pop()] if suffixes and suffixes[-1] in PACKED_SUFFIXES else ""
    )
    kind = KINDS.get(suffixes[-1]) if suffixes else None
    # Tables are packed inside, and are read from their end.
    return None if kind is None or (kind in TABLES and packing) else (kind, packing)


def unreadable(name: str, error: OSError) -> QuinticError:
    """Return the error for an input that the system does not let us read."""
    return QuinticError(f"input {name} cannot be read ({reason(error)}): {way_out(error)}")
