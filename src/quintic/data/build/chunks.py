"""Files of text to chunks, which are small and end where a document ends.

Nothing is held whole but a document: files are unpacked and cut as they are read. A chunk can be
read again from its `Position`, which is how a build continues.
"""

import codecs
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import zstandard

from quintic.data.build.sources.json_values import Layout, json_layout, json_values
from quintic.data.build.text_files import FileKind, OnDownload, TextFile, unreadable
from quintic.data.document import encoding_problem
from quintic.errors import QuinticError

# A worker is busy with this much text for about a twentieth of a second.
CHUNK_BYTES = 1 << 20

# A document is held whole, several times over: as bytes, as text and as tokens.
MAX_DOCUMENT_BYTES = 1 << 28

_COLUMN_READ_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16  # say how JSON lies in a file
_UNPACK_BYTES = 1 << 15  # packed; text unpacks to 3 to 10 times as much


class Position(NamedTuple):
    """The beginning of a chunk: index of the file, bytes of its text or rows before the chunk, and
    the number of its first line or row, from 1."""

    file: int = 0
    offset: int = 0
    line: int = 1


FIRST = Position()


class Chunk(NamedTuple):
    """Whole documents of one file, as they lie there.

    `content` is bytes of text or of lines, or a value for each row, as `Rows` has them; `end` is
    where the next chunk begins; `read_bytes` is how much of the file is read so far; `problem` says
    why the file has no documents at all, and is empty where it may have.
    """

    kind: FileKind
    content: bytes | list[Any]
    begin: Position
    end: Position
    read_bytes: int
    problem: str = ""

    @property
    def size(self) -> int:
        """Bytes of text."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return sum(map(_text_bytes, self.content))


def _text_bytes(value: Any) -> int:
    """Return about how much text a value of a row holds, a text, a list or a message."""
    if isinstance(value, bytes | str):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value or ()
    return sum(map(_text_bytes, parts))


class DocumentFormat(NamedTuple):
    """The way in which documents are found in a file.

    `field` is the name of the JSON field or of the column that holds the text, or a path to it,
    `a.b`; `separator` stands between the documents of a text file, None if it is one document.
    With `messages` the field holds a list, and this is the template of each of its elements, as
    `text_of_messages` takes it.
    """

    field: str
    separator: bytes | None
    messages: str | None = None


def read_chunks(
    files: Sequence[TextFile],
    format: DocumentFormat,
    start: Position = FIRST,
    on_download: OnDownload | None = None,
) -> Iterator[Chunk]:
    """Read files in order, from a position on; `on_download` is called while one is waited for.

    Raises `QuinticError` for a file that cannot be read, is damaged or has no such column, and for
    a document that is too long.
    """
    for index in range(start.file, len(files)):
        first = start if index == start.file else Position(index)
        file = files[index]
        try:
            path = file.local_path(on_download)
            if index + 1 < len(files):
                files[index + 1].begin_download()
            if os.path.lexists(path) and not path.is_file():
                yield _without_documents(file, first, "a broken link, or no regular file")
            elif file.kind == "rows":
                yield from _row_chunks(file, path, first, format)
            elif file.kind == "lines" and (layout := _layout(file, path)) != "lines":
                yield from _value_chunks(file, path, first, layout == "array")
            else:
                delimiter = b"\n" if file.kind == "lines" else format.separator
                yield from _byte_chunks(file, path, first, delimiter)
        except OSError as error:
            raise unreadable(file.name, error) from error


def _byte_chunks(
    file: TextFile, path: Path, start: Position, delimiter: bytes | None
) -> Iterator[Chunk]:
    position = start
    with path.open("rb") as stream:
        for content in _cut(_unpacked_from(stream, file, start.offset), delimiter, file.name):
            end = Position(
                position.file,
                position.offset + len(content),
                position.line + _line_ends(content),
            )
            if position.offset == 0:
                content = content.removeprefix(codecs.BOM_UTF8)  # a byte order mark is no text
                if problem := encoding_problem(content):
                    yield _without_documents(file, position, problem)
                    return
            yield Chunk(file.kind, content, position, end, stream.tell())
            position = end


def _line_ends(content: bytes) -> int:
    # `bytes.count` looks at one byte at a time.
    return int(np.count_nonzero(np.frombuffer(content, np.uint8) == ord("\n")))


def _without_documents(file: TextFile, start: Position, problem: str) -> Chunk:
    return Chunk(file.kind, b"", start, Position(start.file + 1), file.size, problem)


def _layout(file: TextFile, path: Path) -> Layout:
    """Return how JSON lies in a file, by its first text."""
    head = b""
    with path.open("rb") as stream:
        for block in _unpacked_from(stream, file, 0):
            head += block
            if len(head) >= _HEAD_BYTES:
                break
    head = head[:_HEAD_BYTES].removeprefix(codecs.BOM_UTF8)
    return "lines" if encoding_problem(head) else json_layout(head)


def _value_chunks(file: TextFile, path: Path, start: Position, is_array: bool) -> Iterator[Chunk]:
    """Read JSON that does not keep to lines; what is counted are its values."""
    position = start
    with path.open("rb") as stream:
        blocks = _unpacked_from(stream, file, start.offset)
        begun = start.offset > 0
        for values, passed in json_values(
            *(blocks, is_array, begun, CHUNK_BYTES, MAX_DOCUMENT_BYTES, file.name)
        ):
            if position.offset == 0:
                values[0] = values[0].removeprefix(codecs.BOM_UTF8)
            end = Position(start.file, start.offset + passed, position.line + len(values))
            yield Chunk(file.kind, values, position, end, stream.tell())
            position = end


def _cut(blocks: Iterator[bytes], delimiter: bytes | None, name: str) -> Iterator[bytes]:
    """Gather blocks of bytes until they are enough for a chunk; it ends behind a delimiter."""
    held: list[bytes] = []
    size, wanted = 0, CHUNK_BYTES
    for block in blocks:
        held.append(block)
        size += len(block)
        if size > MAX_DOCUMENT_BYTES + CHUNK_BYTES:
            raise QuinticError(
                f"input {name} holds a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB, which "
                f"cannot be kept in memory: cut it into documents; for text, --separator says "
                f"where"
            )
        if size < wanted or delimiter is None:
            continue
        if len(delimiter) == 1 and (end := block.rfind(delimiter) + 1):
            # Copied once, not twice.
            yield b"".join([*held[:-1], block[:end]])
            held, size, wanted = [block[end:]], len(block) - end, CHUNK_BYTES
            continue
        content = b"".join(held)
        end = _end_of_last(content, delimiter)
        if end:
            yield content[:end]
            held, size, wanted = [content[end:]], size - end, CHUNK_BYTES
        else:
            held, wanted = [content], 2 * size
    if size or delimiter is None:
        yield b"".join(held)


def _end_of_last(content: bytes, delimiter: bytes) -> int:
    """Return where the last delimiter ends; 0 if there is none."""
    if len(delimiter) == 1:
        return content.rfind(delimiter) + 1
    # From the left, as the reader of the chunk finds them: delimiters could overlap.
    rest = content.split(delimiter)[-1]
    return len(content) - len(rest)


def _unpacked_from(stream: BinaryIO, file: TextFile, offset: int) -> Iterator[bytes]:
    """Yield the unpacked content of a file from an offset on."""
    if not file.packing:
        stream.seek(offset)
        yield from iter(lambda: stream.read(CHUNK_BYTES), b"")
        return
    for block in _unpacked(stream, file):
        skipped = min(offset, len(block))
        offset -= skipped
        if skipped < len(block):
            yield block[skipped:]


_UNPACKERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),
    # The window of `zstd --long=31`, the largest there is.
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
}


def _unpacked(stream: BinaryIO, file: TextFile) -> Iterator[bytes]:
    """Yield the content of a .gz or .zst file, which may consist of several frames."""
    new = _UNPACKERS[file.packing]
    unpacker, begun = new(), False
    try:
        while packed := stream.read(_UNPACK_BYTES):
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
            f"input {file.name} is damaged before its byte {stream.tell()} ({error}): copy or "
            f"download it again"
        ) from error
    if begun:
        raise QuinticError(
            f"input {file.name} is truncated: its {file.packing} stream does not end within its "
            f"{file.size} bytes; copy or download it again"
        )


def _row_chunks(
    file: TextFile, path: Path, start: Position, format: DocumentFormat
) -> Iterator[Chunk]:
    # PyArrow takes a while to import.
    from quintic.data.build.sources.parquet import parquet_rows

    messages = format.messages is not None
    with path.open("rb") as stream:
        for rows in parquet_rows(
            *(stream, file.name, format.field, messages, start.offset),
            *(CHUNK_BYTES, _COLUMN_READ_BYTES),
        ):
            yield Chunk(
                file.kind,
                rows.values,
                Position(start.file, rows.first, rows.first + 1),
                Position(start.file, rows.end, rows.end + 1),
                int(file.size * rows.fraction),
            )
