"""Tables whose rows are lists of token ids: parquet, Arrow as Hugging Face's datasets has it, and
JSON lines.

The lists are in the column `input_ids` or `tokens`, or in the only one. Where there is an
`attention_mask`, which datasets' tokenizers write, ids that it masks are padding and left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from pyarrow import parquet

from quintic.data.build.sources.arrow import arrow_batches
from quintic.data.build.sources.columns import holds_ids
from quintic.data.build.sources.parquet import in_row_group, open_parquet
from quintic.data.tokens import token_file
from quintic.data.tokens.json_lists import is_json_lines, json_lists, json_lists_schema
from quintic.data.tokens.token_file import (
    ID_COLUMNS,
    MASK_COLUMN,
    TokenBlock,
    TokenFile,
    document_groups,
)
from quintic.errors import QuinticError, one_line

_READ_BYTES = 1 << 20


def find_id_lists(folder: Path, names: list[str]) -> list[TokenFile]:
    """Return the tables of a folder, if one of them has lists of ids.

    Raises `QuinticError` for a table that is damaged, and for one that has no such column beside
    others that do.
    """
    paths = [
        folder / name
        for name in names
        if is_json_lines(name) or name.endswith((".parquet", ".arrow", ".feather"))
    ]
    found = [(path, _find_columns(path)) for path in paths]
    tables = [path for path, columns in found if columns]
    # Beside tables JSON lines may be anything.
    as_text = not any(is_json_lines(path.name) for path in tables)
    others = [
        path
        for path, columns in found
        if not columns and not (as_text and is_json_lines(path.name))
    ]
    if tables and others:
        raise QuinticError(
            f"{others[0]} has no column of lists of token ids, {tables[0].name} beside it has: "
            f"name one folder for each"
        )
    return [
        TokenFile(path, _count(path, columns), partial(_read, path, columns))
        for path, columns in found
        if columns
    ]


def _find_columns(path: Path) -> list[str]:
    """Return the column of the ids, with that of the mask where there is one; none for text."""
    with _reading(path), _opened(path) as (schema, _):
        names = [name for name in ID_COLUMNS if name in schema.names]
        if len(schema.names) == 1:
            names = schema.names
        if names and schema.names.count(names[0]) > 1:
            raise QuinticError(f"{path} has several columns named {names[0]!r}: keep one")
        if not names or not holds_ids(schema.field(schema.get_field_index(names[0])).type):
            return []
        return [names[0], *(name for name in schema.names if name == MASK_COLUMN)]


@contextmanager
def _reading(path: Path, where: str = "") -> Iterator[None]:
    try:
        yield
    # Arrow reports damage as OSError too, and has names that are no UTF-8.
    except (pyarrow.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise QuinticError(
            f"{path} cannot be read as {'parquet' if path.suffix == '.parquet' else 'Arrow'}{where}"
            f" ({one_line(error)}): copy or make it again"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a table, and yield its schema and what gives batches of some of its columns."""
    if is_json_lines(path.name):
        yield json_lists_schema(path), partial(json_lists, path)
        return
    if path.suffix == ".parquet":
        with path.open("rb") as stream:
            table = open_parquet(stream, str(path), _READ_BYTES)
            yield table.schema_arrow, partial(_parquet_batches, path, table)
        return
    with pyarrow.memory_map(str(path)) as source:
        schema, batches = arrow_batches(source, str(path))
        yield schema, partial(_arrow_batches, batches)


def _arrow_batches(batches: Iterator[tuple[Any, float]], columns: list[str]) -> Iterator[Any]:
    for batch, _ in batches:
        selected = batch.select(columns)
        # Offsets of a damaged file would be read wherever they lead.
        selected.validate(full=True)
        yield selected


def _count(path: Path, columns: list[str]) -> int:
    """Return how many tokens a table has, with those that are masked."""
    with _reading(path), _opened(path) as (_, batches):
        if path.suffix == ".parquet":
            meta = parquet.read_metadata(path)
            groups = map(meta.row_group, range(meta.num_row_groups))
            return sum(_values_of(group, columns[0]) for group in groups)
        return sum(int(_lengths(batch.column(0)).sum()) for batch in batches(columns))


def _values_of(group: Any, column: str) -> int:
    """Return how many values the lists of a column have in a row group of parquet."""
    leaves = map(group.column, range(group.num_columns))
    return sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.startswith(f"{column}."))


def _parquet_batches(path: Path, table: Any, columns: list[str]) -> Iterator[Any]:
    for group in range(table.num_row_groups):
        meta = table.metadata.row_group(group)
        rows = max(
            1, token_file.BLOCK_TOKENS * meta.num_rows // max(1, _values_of(meta, columns[0]))
        )
        with _reading(path, in_row_group(group, table)):
            yield from table.iter_batches(
                batch_size=rows, row_groups=[group], columns=columns, use_threads=False
            )


def _read(path: Path, columns: list[str]) -> Iterator[TokenBlock]:
    row = 0
    with _reading(path), _opened(path) as (_, batches):
        for batch in batches(columns):
            lists, *mask = batch.columns
            lengths = _lengths(lists)
            if mask and (lengths != _lengths(mask[0])).any():
                raise QuinticError(
                    f"{path} has rows from {row} on whose {MASK_COLUMN} has another length than "
                    f"their {columns[0]}: make it again"
                )
            for first, end in document_groups(lengths):
                ids, part = _values(path, lists, first, end, row), lengths[first:end]
                if mask:
                    keep = _values(path, mask[0], first, end, row) != 0
                    sums = np.concatenate([[0], np.cumsum(keep)])
                    ids, part = ids[keep], np.diff(sums[np.cumsum(part)], prepend=0)
                yield TokenBlock(ids, part)
            row += len(lists)


def _lengths(lists: Any) -> Any:
    """Return the lengths of lists, [rows]; a null is an empty one."""
    lengths = pyarrow.compute.list_value_length(lists)
    return lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _values(path: Path, lists: Any, first: int, end: int, row: int) -> Any:
    """Return what the lists of some rows of a batch hold, one behind the other, [tokens]."""
    values = lists.slice(first, end - first).flatten()
    if values.null_count:
        raise QuinticError(
            f"{path} has null among the token ids of its rows {row + first} to {row + end - 1}, "
            f"counted from 0: make it again"
        )
    return values.to_numpy(zero_copy_only=False)
