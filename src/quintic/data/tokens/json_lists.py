"""JSON lines whose rows hold lists of token ids, as batches of Arrow."""

import codecs
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.json

from quintic.data.build.sources.byte_stream import byte_stream
from quintic.data.build.sources.packing import unpacked
from quintic.data.build.text_files import kind_and_packing
from quintic.data.tokens.token_file import MASK_COLUMN
from quintic.errors import QuinticError, one_line

_IDS = pyarrow.list_(pyarrow.int64())
_BATCH_BYTES = 1 << 22
_MAX_LINE_BYTES = 1 << 26  # a line is held whole, as bytes and as numbers
_READ_BYTES = 1 << 16


def is_json_lines(name: str) -> bool:
    """Return whether a file is JSON lines by its name; a .json is more often settings."""
    found = kind_and_packing(name)
    return found is not None and found[0] == "lines" and ".json" not in Path(name.lower()).suffixes


def json_lists_schema(path: Path) -> Any:
    """Return the fields of the first row: those that hold a list of integers, and as null whatever
    else there is; no field where it is no object.

    Raises `QuinticError` as `json_lists` does.
    """
    for _, line in _lines(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            break
        if isinstance(row, dict):
            kinds = {name: _IDS if _is_ids(row[name]) else pyarrow.null() for name in row}
            return pyarrow.schema(list(kinds.items()))
        break
    return pyarrow.schema([])


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(part) is int for part in value)


def json_lists(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Yield the rows of some fields, the first of which holds the ids, about `_BATCH_BYTES` at a
    time.

    Raises `QuinticError` for a line that is no row like the first, or too long to be held.
    """
    held: list[tuple[int, bytes]] = []
    size = 0
    for number, line in _lines(path):
        if held and size + len(line) > _BATCH_BYTES:
            yield _batch(path, held, columns)
            held, size = [], 0
        held.append((number, line))
        size += len(line)
    if held:
        yield _batch(path, held, columns)


def _batch(path: Path, lines: Sequence[tuple[int, bytes]], columns: Sequence[str]) -> Any:
    try:
        return _rows([line for _, line in lines], columns)
    except ValueError as error:  # as Arrow's are, which do not say in which line
        for number, line in lines:
            try:
                _rows([line], columns)
            except ValueError as found:
                why = str(found).removesuffix(" in row 0")  # of this line alone
                raise QuinticError(
                    f"{path}:{number} is no row of token ids like the first ({why}): mend or leave "
                    f"out the line, or make the file again"
                ) from found
        raise QuinticError(
            f"{path}:{lines[0][0]} to {lines[-1][0]} are no rows of token ids together "
            f"({one_line(error)}), though each alone is: make the file again"
        ) from error


def _rows(lines: Sequence[bytes], columns: Sequence[str]) -> Any:
    """Return a batch with a row for each line; raises ValueError where one has none."""
    content = b"".join(lines)
    table = pyarrow.json.read_json(
        io.BytesIO(content),
        pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1),
        pyarrow.json.ParseOptions(
            explicit_schema=pyarrow.schema([(name, _IDS) for name in {*columns, MASK_COLUMN}]),
            unexpected_field_behavior="ignore",
        ),
    )
    if table.num_rows != len(lines):
        raise ValueError("not one object on each line")
    if table.column(columns[0]).null_count:
        raise ValueError(f"no list in a field {columns[0]}")
    if MASK_COLUMN not in columns and table.column(MASK_COLUMN).null_count < table.num_rows:
        raise ValueError(f"it has a field {MASK_COLUMN}")
    (batch,) = table.select(columns).combine_chunks().to_batches()
    if batch.column(0).flatten().null_count:
        raise ValueError(f"null in its {columns[0]}")
    return batch


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    found = kind_and_packing(path.name)
    packing = found[1] if found else ""
    with path.open("rb") as stream:
        lines: io.BufferedReader = stream
        if packing:
            size = path.stat().st_size
            lines = byte_stream(unpacked(stream, packing, str(path), size, _READ_BYTES))
        number = 0
        while line := lines.readline(_MAX_LINE_BYTES):
            number += 1
            if len(line) == _MAX_LINE_BYTES:
                raise QuinticError(
                    f"{path}:{number} is a line of {_MAX_LINE_BYTES >> 20} MiB or more, which "
                    f"cannot be kept in memory: cut the row into several"
                )
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.isspace():
                yield number, line
