"""A file that holds documents, wherever it comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quintic.errors import QuinticError

Kind = Literal["text", "lines", "rows"]

# Called while a source is being fetched, with the fraction that has arrived.
Arriving = Callable[[float], None]

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".json": "lines",
    ".parquet": "rows",
}
PACKINGS = (".gz", ".zst")
READABLE = ".txt, .md, .jsonl and .json, also packed as .gz or .zst, and .parquet"


@dataclass(frozen=True)
class Source:
    """A file that holds documents.

    Attributes:
        name: as messages show it.
        kind: "text", a document or several with separators between; "lines", JSON objects; "rows",
            parquet.
        packing: "", ".gz" or ".zst".
        size: bytes of the file as it lies there.
        path: where it lies.
    """

    name: str
    kind: Kind
    packing: str
    size: int
    path: Path

    def local(self, arriving: Arriving | None = None) -> Path:
        """Where it can be read; sources from elsewhere are fetched here first."""
        return self.path

    def prepare(self) -> None:
        """Begin to fetch it in the background; it is next."""


def kind_of(name: str) -> tuple[Kind, str] | None:
    """The kind and the packing of a file, by its name; None if it cannot be read."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in PACKINGS else ""
    kind = KINDS.get(suffixes[-1]) if suffixes else None
    # Parquet is packed inside, and is read from its end.
    return None if kind is None or (kind == "rows" and packing) else (kind, packing)


def unreadable(name: str, error: OSError) -> QuinticError:
    """What is said of an input that the system does not let us read."""
    return QuinticError(
        f"input {name} cannot be read ({error.strerror or error}): check the path and its "
        f"permissions"
    )
