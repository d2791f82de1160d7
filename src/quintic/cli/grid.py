"""The text of --vary as a field and its values: FIELD=VALUE,VALUE,... or FIELD=LOW..HIGH."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

from quintic.cli.errors import kind_of
from quintic.config import Config, field_types, unknown_field
from quintic.errors import QuinticError
from quintic.sweep.plan import Choices, Range


def parse_vary(text: str) -> Choices | Range:
    """Raises `QuinticError` for a field that does not exist and a value that it cannot have."""
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
    if ".." in values and (bounds := _bounds(values)):
        if hint not in (int, float, int | None, float | None):
            raise QuinticError(
                f"--vary {field} is the range {values}, and its values are no numbers: list them"
            )
        low, high = (_value(hint, bound, field) for bound in bounds)
        return Range(field, low, high)
    return Choices(field, tuple(_value(hint, part.strip(), field) for part in values.split(",")))


def _bounds(values: str) -> tuple[str, str] | None:
    low, _, high = (part.strip() for part in values.partition(".."))
    return None if "," in values else (low, high)


def _value(hint: Any, text: str, field: str) -> Any:
    """A text as `quintic train` reads it; the members of a pair stand with spaces between them."""
    try:
        return _convert(hint, text)
    except ValueError:
        raise QuinticError(
            f"--vary {field} has the value {text!r}: it must be {kind_of(hint)}"
        ) from None


def _convert(hint: Any, text: str) -> Any:
    """Raises `ValueError` where the text is no value of the type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if text == "None" else _convert(parts[0], text)
    if origin is tuple:
        members = text.split()
        if len(members) != len(parts):
            raise ValueError(text)
        return tuple(_convert(part, member) for part, member in zip(parts, members, strict=True))
    if origin is Literal and text not in parts:
        raise ValueError(text)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return hint(text) if hint in (int, float) else text
