"""Rows of a .csv or .tsv file, whose first row names the columns."""

import codecs
import csv
from collections.abc import Callable, Iterator
from typing import Any

from quintic.data.build.sources.byte_stream import byte_stream
from quintic.data.build.sources.rows import BadRow, Rows
from quintic.errors import QuinticError, names_in_line

_OTHER_DELIMITERS = ";|\t,"


def delimited_rows(
    blocks: Iterator[bytes],
    name: str,
    field: str,
    delimiter: str,
    start: int,
    rows_bytes: int,
    max_bytes: int,
    fraction: Callable[[], float],
) -> Iterator[Rows]:
    """Yield rows from the row `start` on, counted with that of the names, about `rows_bytes` of
    text at a time.

    Blank lines are no rows. A row is bad where it has more or fewer columns than there are names,
    or a quote that does not close. `fraction` says how much of the file is read. Raises
    `QuinticError` where no column, or several, have the name `field`, and for more than `max_bytes`
    in a column.
    """
    csv.field_size_limit(max_bytes)
    reader = csv.reader(_lines(blocks, name, max_bytes), delimiter=delimiter, strict=True)
    names = next(_rows(reader, name, max_bytes), [])
    if isinstance(names, BadRow):
        raise QuinticError(f"input {name}:1 names no columns: {names}")
    if names.count(field) != 1:
        what = "no column" if field not in names else f"{names.count(field)} columns"
        way_out = "name the one that holds the text with --field"
        if len(names) == 1 and (
            other := next((c for c in _OTHER_DELIMITERS if c in names[0]), None)
        ):
            way_out = f"it seems to have {other!r} between columns, which is to be {delimiter!r}"
        raise QuinticError(
            f"input {name} has {what} {field!r} in its first row, which names them "
            f"({names_in_line(names) or 'it is empty'}): {way_out}"
        )
    column = names.index(field)
    values: list[Any] = []
    first, size, row = max(start, 1), 0, 1
    for fields in _rows(reader, name, max_bytes):
        row += 1
        if row <= first:
            continue
        if isinstance(fields, BadRow):
            values.append(fields)
        elif len(fields) != len(names):
            values.append(BadRow(f"has {len(fields)} columns, the first row names {len(names)}"))
        else:
            values.append(fields[column].encode(errors="surrogateescape"))
            size += len(values[-1])
        if size >= rows_bytes or len(values) >= 10_000:
            yield Rows(values, first, row, fraction())
            values, first, size = [], row, 0
    if values:
        yield Rows(values, first, row, fraction())


def _rows(reader: Any, name: str, max_bytes: int) -> Iterator[list[str] | BadRow]:
    """Yield the rows, without blank lines."""
    while True:
        try:
            if fields := next(reader):
                yield fields
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise _too_long(name, "column", max_bytes) from error
            yield BadRow(f"broken row ({error})")


def _lines(blocks: Iterator[bytes], name: str, max_bytes: int) -> Iterator[str]:
    """Yield lines with their ends; what is no UTF-8 in them comes back when they are encoded."""
    stream, mark = byte_stream(blocks), codecs.BOM_UTF8
    while line := stream.readline(max_bytes + 1):
        if len(line) > max_bytes:
            raise _too_long(name, "line", max_bytes)
        yield line.removeprefix(mark).decode(errors="surrogateescape")
        mark = b""


def _too_long(name: str, what: str, max_bytes: int) -> QuinticError:
    return QuinticError(
        f"input {name} holds a {what} of more than {max_bytes >> 20} MiB, which cannot be kept in "
        f"memory: cut it into documents, or see whether a quote does not close"
    )
