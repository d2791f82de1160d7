"""The rows that a reader of a table found, whatever the table is stored as."""

from typing import Any, NamedTuple


class Rows(NamedTuple):
    """Holds values of one column: those of the rows from `first` to before `end`, counted from 0.

    A value is the bytes of a text, None where the column is null, a list of messages, or a
    `BadRow`. `fraction` of the file is read so far.
    """

    values: list[Any]
    first: int
    end: int
    fraction: float


class BadRow(str):
    """The reason why a row has no value."""
