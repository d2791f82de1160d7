"""The column of a table of Arrow that a field names, and its values."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
import pyarrow
import pyarrow.compute

from quintic.errors import QuinticError, names_in_line

_STRINGS = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
_BINARY = (pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view())
_TEXT = (*_STRINGS, *_BINARY)
_AS_BINARY = dict(zip(_STRINGS, _BINARY, strict=True))


class Column(NamedTuple):
    """A column by the names that lead to it: its own, below those of the structs that hold it.

    `lists` is True where its values are lists of messages rather than texts.
    """

    names: tuple[str, ...]
    lists: bool

    @property
    def path(self) -> str:
        """The names with dots between."""
        return ".".join(self.names)

    def values(self, batch: Any) -> list[Any]:
        """Return the values in a batch of rows; a null of a struct is one of what it holds.

        Raises ArrowInvalid where the batch is damaged, or a message of it is no UTF-8.
        """
        array = batch.column(batch.schema.get_field_index(self.names[0]))
        for name in self.names[1:]:
            array = pyarrow.compute.struct_field(array, [array.type.get_field_index(name)])
        is_json = isinstance(array.type, pyarrow.BaseExtensionType)
        array = array.storage if is_json else array
        # Arrow follows a damaged offset wherever it leads; text that is no UTF-8 is one bad row.
        array = array.view(_AS_BINARY[array.type]) if array.type in _AS_BINARY else array
        array.validate(full=True)
        if self.lists:
            return list(array.to_pylist())
        values = array.cast(pyarrow.large_binary()).to_pylist()
        return list(map(_text_of_json, values)) if is_json else list(values)


def _text_of_json(value: bytes | None) -> bytes | None:
    """Return the text that a value of JSON is, without its quotes, or else the JSON itself."""
    if value is None or not value.lstrip().startswith(b'"'):
        return value
    try:
        return bytes(orjson.loads(value).encode())
    except ValueError:
        return value


def find_column(schema: Any, field: str, input_name: str, messages: bool) -> Column:
    """Return the column that a field names: itself, or as a path through structs, `a.b`.

    Raises `QuinticError` where there is none or several of that name, and where it holds something
    else than text, or with `messages` than lists of texts or of messages.
    """
    found = _find(list(schema), field, input_name)
    if found is None:
        raise QuinticError(
            f"input {input_name} has no column {field!r}, it has {names_in_line(schema.names)}: "
            f"name the one that holds the text with --field"
        )
    path, kind = found
    if messages and _holds_messages(kind):
        return Column(path, lists=True)
    if messages:
        raise QuinticError(
            f"input {input_name} has {kind} in its column {field!r}, not lists of messages: leave "
            f"--messages out, or name the one that holds them with --field"
        )
    if _plain(kind) not in _TEXT:
        way_out = "name the one that holds the text with --field"
        if _holds_messages(kind):
            way_out = "--messages says how a list becomes a text"
        elif holds_ids(kind):
            way_out = "lists of token ids are read by quintic data import"
        elif pyarrow.types.is_struct(kind):
            inner = [f"{field}.{child.name}" for child in kind if _plain(child.type) in _TEXT]
            way_out = f"name the one that holds the text with --field {' or '.join(inner[:3])}"
        raise QuinticError(
            f"input {input_name} has {kind} in its column {field!r}, not text: {way_out}"
        )
    return Column(path, lists=False)


def _find(fields: Sequence[Any], path: str, input_name: str) -> tuple[tuple[str, ...], Any] | None:
    """Return the names that a path means, and the type there; a name may have dots of its own."""
    dots = (index for index, character in enumerate(path) if character == ".")
    for end in (len(path), *dots):
        kinds = [field.type for field in fields if field.name == path[:end]]
        if len(kinds) > 1:
            raise QuinticError(
                f"input {input_name} has {len(kinds)} columns named {path[:end]!r}: rename the one "
                f"that does not hold the text"
            )
        if kinds and end == len(path):
            return (path,), kinds[0]
        inner = list(kinds[0]) if kinds and pyarrow.types.is_struct(kinds[0]) else []
        if inner and (found := _find(inner, path[end + 1 :], input_name)):
            return (path[:end], *found[0]), found[1]
    return None


def _plain(kind: Any) -> Any:
    """Return the type of the values themselves, of a category or of JSON, which is text."""
    if pyarrow.types.is_dictionary(kind):
        return kind.value_type
    if isinstance(kind, pyarrow.BaseExtensionType) and kind.extension_name == "arrow.json":
        return kind.storage_type
    return kind


def holds_ids(kind: Any) -> bool:
    """Return whether the values of a type are lists of integers, as of token ids."""
    return not pyarrow.types.is_dictionary(kind) and pyarrow.types.is_integer(
        getattr(kind, "value_type", pyarrow.null())
    )


_LIST_TYPES = (
    pyarrow.ListType,
    pyarrow.LargeListType,
    pyarrow.ListViewType,
    pyarrow.LargeListViewType,
    pyarrow.FixedSizeListType,
)


def _holds_messages(kind: Any) -> bool:
    if not isinstance(kind, _LIST_TYPES):
        return False
    return _plain(kind.value_type) in _STRINGS or pyarrow.types.is_struct(kind.value_type)
