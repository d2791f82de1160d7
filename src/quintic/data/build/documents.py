"""Chunks to documents: the text, or what is wrong with it."""

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import orjson

from quintic.data.build.chunks import Chunk, DocumentFormat, split_at
from quintic.data.build.messages import text_of_messages
from quintic.data.build.sources.rows import BadRow
from quintic.data.tokens.token_file import ID_COLUMNS
from quintic.errors import names_in_line

# No text has so many; a crash, a full disk or a file that was made larger leaves them.
_ZERO_RUN = "\0" * 64
_ZEROS = "zeros (NUL) instead of text: make or copy the file again, or cut them off"


class Document(NamedTuple):
    """A text that has something other than white space, and the line or row where it began."""

    line: int
    text: str


class BadDocument(NamedTuple):
    """A record that cannot be a document: index of its file, its line or row from 1, and why."""

    file: int
    line: int
    reason: str


class _UnusableError(Exception):
    """The reason why a record is no document."""


def documents(chunk: Chunk, format: DocumentFormat) -> Iterator[Document | BadDocument]:
    """Yield the documents of a chunk, in order.

    Blank lines between JSON objects are no documents, nor is white space between two separators of
    a text file, or at its ends.
    """
    if chunk.problem:
        yield BadDocument(chunk.begin.file, chunk.begin.line, chunk.problem)
        return
    for line, record in _records(chunk, format):
        try:
            text = _text(chunk, record, format)
            if not text or text.isspace():
                raise _UnusableError("empty document")
            if _ZERO_RUN in text:
                raise _UnusableError(_ZEROS)
        except _UnusableError as problem:
            yield BadDocument(chunk.begin.file, line, str(problem))
        else:
            yield Document(line, text)


def is_separated(chunk: Chunk, format: DocumentFormat) -> bool:
    """Return whether a chunk of text has the separator, where there is one."""
    assert isinstance(chunk.content, bytes)
    separator = format.separator
    return separator is not None and len(split_at(chunk.content, separator)) > 1


def _text(chunk: Chunk, record: Any, format: DocumentFormat) -> str:
    """Return the text of a record."""
    what = f"column {format.field!r}"
    if chunk.kind == "lines":
        what, record = f"field {format.field!r}", _value_at(_parsed(record), format.field)
    elif isinstance(record, BadRow):
        raise _UnusableError(record)
    if record is None and chunk.kind != "lines":
        raise _UnusableError(f"{what} is null")
    if format.messages is not None and chunk.kind not in ("text", "warc"):
        try:
            return text_of_messages(record, format.messages)
        except ValueError as error:
            raise _UnusableError(f"{what} {error}") from error
    if isinstance(record, bytes):
        return _decoded(record)
    if not isinstance(record, str):
        raise _UnusableError(f"{what} is no text but {json.dumps(record)[:40]}{_way(record)}")
    return record


def _records(chunk: Chunk, format: DocumentFormat) -> Iterator[tuple[int, Any]]:
    """Yield the line or row where each record begins, and its bytes or value."""
    line = chunk.begin.line
    if not isinstance(chunk.content, bytes):
        yield from enumerate(chunk.content, line)
    elif chunk.kind == "lines" and chunk.content.isspace():
        return  # a file that was made larger may have millions of blank lines
    elif chunk.kind == "lines":
        # `bytes.split` looks at one byte at a time.
        for number, record in enumerate(BytesIO(chunk.content), line):
            if not record.isspace():
                yield number, record
    elif format.separator is None:
        yield line, chunk.content
    else:
        for record in split_at(chunk.content, format.separator):
            if record and not record.isspace():
                yield line, record
            line += record.count(b"\n") + format.separator.count(b"\n")


def _decoded(record: bytes) -> str:
    try:
        return record.decode()
    except UnicodeDecodeError as error:
        raise _UnusableError(f"invalid UTF-8 at byte {error.start} of the document") from error


def _value_at(record: Any, field: str) -> Any:
    """Return what an object has in a field, or at the end of a path of them."""
    if not isinstance(record, dict):
        raise _UnusableError("no JSON object")
    if field in record:
        return record[field]
    # A name may have dots of its own.
    for dot in (index for index, character in enumerate(field) if character == "."):
        if isinstance(record.get(field[:dot]), dict):
            try:
                return _value_at(record[field[:dot]], field[dot + 1 :])
            except _UnusableError:
                continue
    there = names_in_line(record) or "no fields"
    way = next(filter(None, (_way(record.get(name)) for name in ID_COLUMNS)), "")
    raise _UnusableError(f"no field {field!r} (--field), there are {there}{way}")


def _way(value: Any) -> str:
    """Return who reads a value that is a list of token ids, as the end of a message."""
    if isinstance(value, list) and value and all(type(part) is int for part in value):
        return "; lists of token ids are read by quintic data import"
    return ""


def _integer(digits: str) -> float:
    """Return a number, infinity where it has more digits than Python reads as an integer."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    # Half as fast, but reads what Python itself writes and JSON does not know, NaN and halves of
    # surrogate pairs, and numbers of any size; and tells what is wrong with the line.
    try:
        return json.loads(_decoded(line.removesuffix(b"\n")), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        if b"\0\0" in line:
            raise _UnusableError(_ZEROS) from error
        raise _UnusableError(f"broken JSON ({error})") from error
