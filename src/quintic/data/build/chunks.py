"""Sources to pieces of text, which are small and end where a document ends.

Nothing is held whole but a document: files are unpacked and cut as they are read. A piece can be
read again from its `Position`, which is how a build continues.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import zstandard

from quintic.data.build.text_files import Arriving, Kind, Source, unreadable
from quintic.errors import QuinticError

# A worker is busy with this much text for about a twentieth of a second.
PIECE_BYTES = 1 << 20

# A document is held whole, several times over: as bytes, as text and as tokens.
MAX_DOCUMENT_BYTES = 1 << 28

_COLUMN_READ_BYTES = 1 << 20
_UNPACK_BYTES = 1 << 15  # packed; text unpacks to 3 to 10 times as much


class Position(NamedTuple):
    """Where the next piece begins.

    Attributes:
        source: index of the source.
        offset: bytes of its unpacked text, or rows.
        line: number of the line or row, counted from 1.
    """

    source: int = 0
    offset: int = 0
    line: int = 1


FIRST = Position()


class Piece(NamedTuple):
    """Whole documents of one source, as they lie there.

    Attributes:
        kind: of the source.
        content: bytes of text or of lines; or a value for each row.
        begin: where it begins.
        after: where the next piece begins.
        read_bytes: how much of the source's file is read so far.
    """

    kind: Kind
    content: bytes | list[bytes | None]
    begin: Position
    after: Position
    read_bytes: int

    @property
    def size(self) -> int:
        """Bytes of text."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return sum(len(value or b"") for value in self.content)


class Reading(NamedTuple):
    """How documents are found in a file.

    Attributes:
        field: name of the field or column that holds the text.
        separator: what stands between the documents of a text file; None if it is one document.
    """

    field: str
    separator: bytes | None


def read_pieces(
    sources: Sequence[Source],
    reading: Reading,
    start: Position = FIRST,
    arriving: Arriving | None = None,
) -> Iterator[Piece]:
    """Read sources in order, from a position on.

    Args:
        sources: all sources of the build.
        reading: how documents are found.
        start: what comes before is passed over.
        arriving: called while the next source is waited for.

    Raises:
        QuinticError: a source that cannot be read, is damaged or has no such column, or a document
            that is too long.
    """
    for index in range(start.source, len(sources)):
        first = start if index == start.source else Position(index)
        source = sources[index]
        try:
            path = source.local(arriving)
            if index + 1 < len(sources):
                sources[index + 1].prepare()
            if source.kind == "rows":
                yield from _row_pieces(source, path, first, reading.field)
            else:
                delimiter = b"\n" if source.kind == "lines" else reading.separator
                yield from _byte_pieces(source, path, first, delimiter)
        except OSError as error:
            raise unreadable(source.name, error) from error


def _byte_pieces(
    source: Source, path: Path, start: Position, delimiter: bytes | None
) -> Iterator[Piece]:
    position = start
    with path.open("rb") as file:
        for content in _cut(_chunks(file, source, start.offset), delimiter, source.name):
            after = Position(
                position.source,
                position.offset + len(content),
                position.line + content.count(b"\n"),
            )
            if position.offset == 0:
                content = content.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no text
            yield Piece(source.kind, content, position, after, file.tell())
            position = after


def _cut(chunks: Iterator[bytes], delimiter: bytes | None, name: str) -> Iterator[bytes]:
    """Gather chunks until they hold a piece, and end it behind the last delimiter."""
    held: list[bytes] = []
    size, wanted = 0, PIECE_BYTES
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size > MAX_DOCUMENT_BYTES + PIECE_BYTES:
            raise QuinticError(
                f"input {name} holds a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB, which "
                f"cannot be kept in memory: cut it into documents; for text, --separator says "
                f"where"
            )
        if size < wanted or delimiter is None:
            continue
        content = b"".join(held)
        end = _end_of_last(content, delimiter)
        if end:
            yield content[:end]
            held, size, wanted = [content[end:]], size - end, PIECE_BYTES
        else:
            held, wanted = [content], 2 * size
    if size or delimiter is None:
        yield b"".join(held)


def _end_of_last(content: bytes, delimiter: bytes) -> int:
    """Where the last delimiter ends; 0 if there is none."""
    if len(delimiter) == 1:
        return content.rfind(delimiter) + 1
    # From the left, as the reader of the piece finds them: delimiters could overlap.
    rest = content.split(delimiter)[-1]
    return len(content) - len(rest)


def _chunks(file: BinaryIO, source: Source, offset: int) -> Iterator[bytes]:
    """The unpacked content of a file from an offset on."""
    if not source.packing:
        file.seek(offset)
        yield from iter(lambda: file.read(PIECE_BYTES), b"")
        return
    skipped = 0
    for chunk in _unpacked(file, source):
        if skipped < offset:
            skipped += len(chunk)
            chunk = chunk[len(chunk) - (skipped - offset) :] if skipped > offset else b""
        if chunk:
            yield chunk


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _unpacked(file: BinaryIO, source: Source) -> Iterator[bytes]:
    """The content of a .gz or .zst file, which may consist of several frames."""
    new: Callable[[], _Unpacker] = {".gz": _gzip_unpacker, ".zst": _zstd_unpacker}[source.packing]
    unpacker, begun = new(), False
    try:
        while packed := file.read(_UNPACK_BYTES):
            while packed:
                begun = True
                yield unpacker.decompress(packed)
                packed = b""
                if unpacker.eof:
                    # Zeros may follow as padding, and are no frame.
                    packed = unpacker.unused_data.lstrip(b"\0")
                    unpacker, begun = new(), False
    except (zlib.error, zstandard.ZstdError) as error:
        raise QuinticError(
            f"input {source.name} is damaged before its byte {file.tell()} ({error}): copy or "
            f"download it again"
        ) from error
    if begun:
        raise QuinticError(
            f"input {source.name} is truncated: its {source.packing} stream does not end within "
            f"its {source.size} bytes; copy or download it again"
        )


def _gzip_unpacker() -> _Unpacker:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd_unpacker() -> _Unpacker:
    # The window of `zstd --long=31`, the largest there is.
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _row_pieces(source: Source, path: Path, start: Position, field: str) -> Iterator[Piece]:
    import pyarrow
    from pyarrow import parquet

    with path.open("rb") as file:
        try:
            # Without a buffer size a whole column of a row group would be read at once.
            table = parquet.ParquetFile(file, buffer_size=_COLUMN_READ_BYTES, pre_buffer=False)
            column = _text_column(table, source.name, field)
            row = 0
            for group in range(table.num_row_groups):
                meta = table.metadata.row_group(group)
                if row + meta.num_rows <= start.offset:
                    row += meta.num_rows
                    continue
                text_bytes = meta.column(column).total_uncompressed_size
                for batch in table.iter_batches(
                    batch_size=max(1, min(10_000, PIECE_BYTES * meta.num_rows // (text_bytes + 1))),
                    row_groups=[group],
                    columns=[field],
                    use_threads=False,
                ):
                    skipped = min(max(0, start.offset - row), batch.num_rows)
                    first, row = row + skipped, row + batch.num_rows
                    values = batch.column(0).slice(skipped)
                    if len(values):
                        yield Piece(
                            source.kind,
                            values.cast(pyarrow.large_binary()).to_pylist(),
                            Position(start.source, first, first + 1),
                            Position(start.source, row, row + 1),
                            source.size * row // table.metadata.num_rows,
                        )
        # Arrow reports damage as OSError too.
        except (pyarrow.ArrowException, OSError, EOFError) as error:
            raise QuinticError(
                f"input {source.name} cannot be read as parquet ({_first_line(error)}): copy or "
                f"download it again"
            ) from error


def _text_column(table: Any, name: str, field: str) -> int:
    """Index of the column that holds the text, which must be text."""
    import pyarrow

    schema = table.schema_arrow
    if field not in schema.names:
        raise QuinticError(
            f"input {name} has no column {field!r}, it has {', '.join(schema.names)}: name the one "
            f"that holds the text with --field"
        )
    kind = schema.field(field).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    text = (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary())
    if kind not in text:
        raise QuinticError(
            f"input {name} has {kind} in its column {field!r}, not text: name the one that holds "
            f"the text with --field"
        )
    return [table.schema.column(i).path for i in range(len(table.schema))].index(field)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
