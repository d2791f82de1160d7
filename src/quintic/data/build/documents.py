"""Pieces of sources to documents: the text, or what is wrong with it."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from quintic.data.build.chunks import Piece, Reading


class Document(NamedTuple):
    """A text that has something other than white space, and where it began."""

    line: int
    text: str


class Bad(NamedTuple):
    """What cannot be a document.

    Attributes:
        source: index of the source.
        line: number of the line or row where it begins, from 1.
        reason: what is wrong with it.
    """

    source: int
    line: int
    reason: str


class _UnusableError(Exception):
    """The reason why a record is no document."""


def documents(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    """The documents of a piece, in order.

    Blank lines between JSON objects are no documents, nor is white space between two separators of
    a text file, or at its ends.
    """
    for line, record in _records(piece, reading):
        try:
            if record is None:
                raise _UnusableError(f"column {reading.field!r} is null")
            if piece.kind == "lines":
                text = _text_of_object(record, reading.field)
            else:
                text = _decoded(record)
            if not text or text.isspace():
                raise _UnusableError("empty document")
        except _UnusableError as problem:
            yield Bad(piece.begin.source, line, str(problem))
        else:
            yield Document(line, text)


def _records(piece: Piece, reading: Reading) -> Iterator[tuple[int, bytes | None]]:
    """Where each record begins, and its bytes."""
    line = piece.begin.line
    if not isinstance(piece.content, bytes):
        yield from enumerate(piece.content, line)
    elif piece.kind == "lines":
        for number, record in enumerate(piece.content.split(b"\n"), line):
            if record and not record.isspace():
                yield number, record
    elif reading.separator is None:
        yield line, piece.content
    else:
        for record in piece.content.split(reading.separator):
            if record and not record.isspace():
                yield line, record
            line += record.count(b"\n") + reading.separator.count(b"\n")


def _decoded(record: bytes) -> str:
    try:
        return record.decode()
    except UnicodeDecodeError as error:
        raise _UnusableError(f"invalid UTF-8 at byte {error.start} of the document") from error


def _text_of_object(line: bytes, field: str) -> str:
    record = _parsed(line)
    if not isinstance(record, dict):
        raise _UnusableError("no JSON object")
    if field not in record:
        there = ", ".join(list(record)[:10]) or "no fields"
        raise _UnusableError(f"no field {field!r} (--field), there are {there}")
    text = record[field]
    if not isinstance(text, str):
        raise _UnusableError(f"field {field!r} is no text but {json.dumps(text)[:40]}")
    return text


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    # Half as fast, but reads what Python itself writes and JSON does not know, NaN and halves of
    # surrogate pairs; and tells what is wrong with the line.
    try:
        return json.loads(_decoded(line))
    except (ValueError, RecursionError) as error:
        raise _UnusableError(f"broken JSON ({error})") from error
