"""Rows of a parquet file, a part of a row group at a time."""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from quintic.data.build.sources.columns import find_column
from quintic.data.build.sources.rows import Rows
from quintic.errors import QuinticError, one_line

_END_BYTES = 8  # of the footer's length and the magic
_SIGNATURE_BYTES = 28


def open_parquet(stream: BinaryIO, name: str, read_bytes: int) -> Any:
    """Open parquet, of which `read_bytes` of a column are read at once.

    Raises `QuinticError` where it is encrypted, and what Arrow raises where it is damaged.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _END_BYTES))
    end = stream.read()
    encrypted = QuinticError(
        f"{name} is encrypted parquet: write it anew without, by a program that has its keys"
    )
    if end.endswith(b"PARE"):
        raise encrypted
    # Without a buffer size a whole column of a row group would be read at once.
    table = parquet.ParquetFile(stream, buffer_size=read_bytes, pre_buffer=False)
    # Where only the footer can be read, a signature follows its metadata.
    if int.from_bytes(end[:4], "little") == table.metadata.serialized_size + _SIGNATURE_BYTES:
        raise encrypted
    return table


def in_row_group(group: int, table: Any) -> str:
    """Return which row group of a table is damaged, as a part of a message."""
    return f" in its row group {group}, counted from 0, of {table.num_row_groups}"


def parquet_rows(
    stream: BinaryIO,
    name: str,
    field: str,
    messages: bool,
    start: int,
    rows_bytes: int,
    read_bytes: int,
) -> Iterator[Rows]:
    """Yield rows from the row `start` on, about `rows_bytes` of text at a time.

    `read_bytes` of a column are read at once. Raises `QuinticError` as `find_column` does, and for
    a file that is damaged or no parquet.
    """
    where = ""
    try:
        table = open_parquet(stream, f"input {name}", read_bytes)
        column = find_column(table.schema_arrow, field, name, messages)
        paths = [table.schema.column(index).path for index in range(len(table.schema))]
        leaves = [i for i, p in enumerate(paths) if f"{p}.".startswith(f"{column.path}.")]
        row = 0
        for group in range(table.num_row_groups):
            where = in_row_group(group, table)
            meta = table.metadata.row_group(group)
            if row + meta.num_rows <= start:
                row += meta.num_rows
                continue
            text_bytes = sum(meta.column(leaf).total_uncompressed_size for leaf in leaves)
            for batch in table.iter_batches(
                batch_size=max(1, min(10_000, rows_bytes * meta.num_rows // (text_bytes + 1))),
                row_groups=[group],
                columns=[column.path],
                use_threads=False,
            ):
                skipped = min(max(0, start - row), batch.num_rows)
                first, row = row + skipped, row + batch.num_rows
                if first < row:
                    values = column.values(batch.slice(skipped))
                    yield Rows(values, first, row, row / table.metadata.num_rows)
    # Arrow reports damage as OSError too, and has names that are no UTF-8.
    except (pyarrow.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise QuinticError(
            f"input {name} cannot be read as parquet{where} ({one_line(error)}): copy or download "
            f"it again"
        ) from error
