"""The text of --vary as a field and its values: FIELD=VALUE,VALUE,... or FIELD=LOW..HIGH."""

from __future__ import annotations

import typing
from typing import Any, Literal

from quintic.cli.parsing import kind_of
from quintic.config import Config, field_types, unknown_field
from quintic.errors import QuinticError
from quintic.sweep.plan import Choices, Range


def parse_vary(text: str) -> Choices | Range:
    """Return what --vary asks for; raises `QuinticError` for a field that does not exist and a
    value that it cannot have."""
    field, equals, values = text.partition("=")
    field = field.strip().replace("-", "_")
    if not equals or not values.strip():
        raise QuinticError(
            f"--vary is {text!r}: it must be a field and its values, such as "
            "optim.muon.lr=1e-4,2e-4"
        )
    hint = field_types(Config).get(field)
    if hint is None:
        raise QuinticError(f"--vary: {unknown_field(Config, field)}")
    low, dots, high = (part.strip() for part in values.partition(".."))
    if dots and "," not in values:
        if hint not in (int, float, int | None, float | None):
            raise QuinticError(
                f"--vary {field} is the range {values}, and its values are no numbers: list them"
            )
        return Range(field, _value(hint, low, field), _value(hint, high, field))
    return Choices(field, tuple(_value(hint, part.strip(), field) for part in values.split(",")))


def _value(hint: Any, text: str, field: str) -> Any:
    """Return a text as `quintic train` reads it; members of a pair stand with spaces between."""
    try:
        return _convert(hint, text)
    except ValueError:
        raise QuinticError(
            f"--vary {field} has the value {text!r}: it must be {kind_of(hint)}"
        ) from None


def _convert(hint: Any, text: str) -> Any:
    """Return a text as a value of a type; raises `ValueError` where it is none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in parts:
        return None if text == "None" else _convert(parts[0], text)
    if origin is tuple:
        members = text.split()
        kinds = parts[:1] * len(members) if parts[1:] == (Ellipsis,) else parts
        return tuple(_convert(kind, one) for kind, one in zip(kinds, members, strict=True))
    if origin is Literal:
        return parts[parts.index(text)]
    if hint is bool:
        return bool(("false", "true").index(text.lower()))
    return hint(text) if hint in (int, float) else text
