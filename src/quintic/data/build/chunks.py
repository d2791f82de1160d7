"""Files of text to chunks, which are small and end where a document ends.

Nothing is held whole but a document: files are unpacked and cut as they are read. A chunk can be
read again from its `Position`, which is how a build continues.
"""

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from quintic.data.build.sources.delimited import delimited_rows
from quintic.data.build.sources.json_values import json_layout, json_values
from quintic.data.build.sources.packing import PACKINGS, packing_of, unpacked
from quintic.data.build.sources.rows import Rows
from quintic.data.build.sources.utf16 import MARK_BYTES, as_utf8, is_utf16
from quintic.data.build.sources.warc import warc_texts
from quintic.data.build.text_files import TABLES, FileKind, OnDownload, TextFile, unreadable
from quintic.data.document import text_problem
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
    `a.b`; `separator` stands between the documents of a text file, None if it is one document, and
    a line end in it stands for CR LF too.
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
            yield from _chunks(file, path, first, format)
        except OSError as error:
            raise unreadable(file.name, error) from error


def _chunks(file: TextFile, path: Path, start: Position, format: DocumentFormat) -> Iterator[Chunk]:
    """Read one file."""
    if os.path.lexists(path) and not path.is_file():
        return iter([_without_documents(file, start, "a broken link, or no regular file")])
    if file.kind in TABLES:
        return _row_chunks(file, path, start, format)
    head = _head(file, path)
    if file.packing and (inner := packing_of(head)):
        raise QuinticError(
            f"input {file.name} is packed twice, by {PACKINGS[inner].name} within: unpack it once"
        )
    if problem := text_problem(head):
        return iter([_without_documents(file, start, problem)])
    if file.kind in ("csv", "tsv"):
        return _row_chunks(file, path, start, format)
    if file.kind == "warc":
        return _value_chunks(file, path, start, warc_texts)
    if file.kind == "lines" and (layout := json_layout(head)) != "lines":
        return _value_chunks(file, path, start, partial(json_values, layout == "array"))
    delimiter = b"\n" if file.kind == "lines" else format.separator
    return _byte_chunks(file, path, start, delimiter)


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
            yield Chunk(file.kind, content, position, end, stream.tell())
            del content
            position = end


def _line_ends(content: bytes) -> int:
    # `bytes.count` looks at one byte at a time.
    return int(np.count_nonzero(np.frombuffer(content, np.uint8) == ord("\n")))


def _without_documents(file: TextFile, start: Position, problem: str) -> Chunk:
    return Chunk(file.kind, b"", start, Position(start.file + 1), file.size, problem)


def _head(file: TextFile, path: Path) -> bytes:
    """Return the first text of a file, or all where it has less than _HEAD_BYTES."""
    head = b""
    with path.open("rb") as stream:
        for block in _unpacked_from(stream, file, 0):
            head += block
            if len(head) >= _HEAD_BYTES:
                break
    return head[:_HEAD_BYTES].removeprefix(codecs.BOM_UTF8)


class _ValueReader(Protocol):
    """Reads values, some at a time, with how many bytes lie before the next, where reading can go
    on, as `json_values` and `warc_texts` do."""

    def __call__(
        self, blocks: Iterator[bytes], begun: bool, part_bytes: int, max_bytes: int, name: str
    ) -> Iterator[tuple[list[Any], int]]: ...


def _value_chunks(
    file: TextFile, path: Path, start: Position, read: _ValueReader
) -> Iterator[Chunk]:
    """Read what does not keep to lines; what is counted are its values."""
    position = start
    with path.open("rb") as stream:
        blocks = _unpacked_from(stream, file, start.offset)
        for values, passed in read(
            blocks, start.offset > 0, CHUNK_BYTES, MAX_DOCUMENT_BYTES, file.name
        ):
            end = Position(start.file, start.offset + passed, position.line + len(values))
            yield Chunk(file.kind, values, position, end, stream.tell())
            position = end


def _cut(blocks: Iterator[bytes], delimiter: bytes | None, name: str) -> Iterator[bytes]:
    """Gather blocks of bytes until they are enough for a chunk; it ends behind a delimiter."""
    held: list[bytes] = []
    size, wanted = 0, CHUNK_BYTES
    last: tuple[int, int] | None = None  # the block that has the last delimiter, and its end there
    for block in blocks:
        held.append(block)
        size += len(block)
        if size > MAX_DOCUMENT_BYTES + CHUNK_BYTES:
            raise QuinticError(
                f"input {name} holds a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB, which "
                f"cannot be kept in memory: cut it into documents; for text, --separator says "
                f"where"
            )
        if delimiter is None:
            continue
        if len(delimiter) == 1:
            # Nothing is joined before a chunk ends.
            if end := block.rfind(delimiter) + 1:
                last = len(held) - 1, end
            if last is not None and size >= CHUNK_BYTES:
                index, end = last
                content = b"".join([*held[:index], held[index][:end]])
                held, last = [held[index][end:], *held[index + 1 :]], None
                size = sum(map(len, held))
                yield content
                del content  # a long document is not held while the next is read
            continue
        if size < wanted:
            continue
        content = b"".join(held)
        if end := _end_of_last(content, delimiter):
            yield content[:end]
            held, size, wanted = [content[end:]], size - end, CHUNK_BYTES
        else:
            held, wanted = [content], 2 * size
    if size or delimiter is None:
        content = b"".join(held)
        del held
        yield content


def split_at(content: bytes, separator: bytes) -> list[bytes]:
    """Return what stands between separators, each of whose line ends may also be CR LF."""
    if b"\n" not in separator or b"\r\n" not in content:
        return content.split(separator)
    return re.split(re.escape(separator).replace(b"\\\n", rb"\r?\n"), content)


def _end_of_last(content: bytes, delimiter: bytes) -> int:
    """Return where the last delimiter ends; 0 if there is none."""
    # From the left, as the reader of the chunk finds them: delimiters could overlap.
    rest = split_at(content, delimiter)[-1]
    return len(content) - len(rest)


def _unpacked_from(stream: BinaryIO, file: TextFile, offset: int) -> Iterator[bytes]:
    """Yield the unpacked content of a file, as UTF-8, from an offset on."""
    blocks = iter(lambda: stream.read(CHUNK_BYTES), b"")
    if file.packing:
        blocks = unpacked(stream, file.packing, file.name, file.size, _UNPACK_BYTES)
    else:
        utf16 = is_utf16(stream.read(MARK_BYTES))
        stream.seek(0 if utf16 else offset)
        if not utf16:
            yield from blocks
            return
    for block in as_utf8(blocks):
        skipped = min(offset, len(block))
        offset -= skipped
        if skipped < len(block):
            yield block[skipped:]


def _row_chunks(
    file: TextFile, path: Path, start: Position, format: DocumentFormat
) -> Iterator[Chunk]:
    """Read a table; what is counted are its rows."""
    with path.open("rb") as stream:
        for rows in _rows(file, path, stream, start.offset, format):
            yield Chunk(
                file.kind,
                rows.values,
                Position(start.file, rows.first, rows.first + 1),
                Position(start.file, rows.end, rows.end + 1),
                int(file.size * rows.fraction),
            )


def _rows(
    file: TextFile, path: Path, stream: BinaryIO, start: int, format: DocumentFormat
) -> Iterator[Rows]:
    name, field, messages = file.name, format.field, format.messages is not None
    if file.kind in ("csv", "tsv"):
        return delimited_rows(
            *(_unpacked_from(stream, file, 0), name, field, "\t" if file.kind == "tsv" else ","),
            *(start, CHUNK_BYTES, MAX_DOCUMENT_BYTES, lambda: stream.tell() / file.size),
        )
    # PyArrow takes a while to import.
    if file.kind == "arrow":
        from quintic.data.build.sources.arrow import arrow_rows

        return arrow_rows(path, name, field, messages, start, CHUNK_BYTES)
    from quintic.data.build.sources.parquet import parquet_rows

    return parquet_rows(stream, name, field, messages, start, CHUNK_BYTES, _COLUMN_READ_BYTES)
