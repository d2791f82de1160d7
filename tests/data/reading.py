"""Reads input files as a build does, without tokenizing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quintic.data.build.chunks import FIRST, DocumentFormat, Position, read_chunks
from quintic.data.build.documents import BadDocument, documents
from quintic.data.build.inputs import find_text_files


def read(
    inputs: Path | str,
    start: Position = FIRST,
    field: str = "text",
    separator: str | None = None,
    messages: str | None = None,
) -> Iterator[tuple[Position, list[tuple[int, str] | BadDocument]]]:
    """Where each chunk begins and the documents in it."""
    files, _ = find_text_files([str(inputs)], leave_out=Path("nowhere"))
    format = DocumentFormat(field, separator.encode() if separator else None, messages)
    for chunk in read_chunks(files, format, start):
        found: list[tuple[int, str] | BadDocument] = [
            document if isinstance(document, BadDocument) else (document.line, document.text)
            for document in documents(chunk, format)
        ]
        yield chunk.begin, found


def texts(inputs: Path | str, **format: Any) -> list[str | BadDocument]:
    return [
        document if isinstance(document, BadDocument) else document[1]
        for _, found in read(inputs, **format)
        for document in found
    ]
