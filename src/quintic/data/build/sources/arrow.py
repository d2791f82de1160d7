"""Rows of an Arrow file (IPC): the stream format, as datasets writes it, or the file format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc

from quintic.data.build.sources.columns import find_column
from quintic.data.build.sources.rows import Rows
from quintic.errors import QuinticError, one_line


def arrow_rows(
    path: Path, name: str, field: str, messages: bool, start: int, rows_bytes: int
) -> Iterator[Rows]:
    """Yield rows from the row `start` on, about `rows_bytes` of text at a time.

    The file is mapped: a batch of it is read as its rows are, and held whole only where it is
    compressed. Raises `QuinticError` as `find_column` does, and for a file that is damaged or of
    another format.
    """
    try:
        with pyarrow.memory_map(str(path)) as source:
            schema, batches = arrow_batches(source, name)
            column = find_column(schema, field, name, messages)
            row = 0
            for batch, fraction in batches:
                begin, row = row, row + batch.num_rows
                if row <= start:
                    continue
                batch = batch.select([column.names[0]])
                batch.validate()
                step = max(1, min(10_000, rows_bytes * batch.num_rows // (batch.nbytes + 1)))
                for first in range(max(begin, start), row, step):
                    end = min(first + step, row)
                    values = column.values(batch.slice(first - begin, end - first))
                    yield Rows(values, first, end, fraction)
    # Arrow reports damage as OSError too, and has names that are no UTF-8.
    except (pyarrow.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise QuinticError(
            f"input {name} cannot be read as Arrow ({one_line(error)}): copy or download it again"
        ) from error


def arrow_batches(source: Any, name: str) -> tuple[Any, Iterator[tuple[Any, float]]]:
    """Return the schema, and each batch with the fraction of the file up to it."""
    begin = source.read(6)
    source.seek(0)
    if begin.startswith(b"FEA1"):
        raise QuinticError(
            f"input {name} is Feather version 1: write it again with "
            f"pandas.read_feather(OLD).to_feather(NEW)"
        )
    if begin == b"ARROW1":
        file = ipc.open_file(source)
        count = file.num_record_batches
        return file.schema, ((file.get_batch(i), (i + 1) / count) for i in range(count))
    stream = ipc.open_stream(source)
    return stream.schema, ((batch, source.tell() / source.size()) for batch in stream)
