"""Configs as dotted names and as JSON."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from quintic.errors import QuinticError


def differing_fields(one: Any, other: Any) -> list[str]:
    """Dotted names of the fields in which two configs differ."""
    left, right = dict(flatten(one)), dict(flatten(other))
    return [key for key in left if left[key] != right[key]]


def unknown_field(root: Any, key: str) -> str:
    """The message for a field that a config class does not have, with the nearest that it has."""
    nearest = nearest_name(key, list(field_types(root)))
    hint = f"did you mean {nearest}?" if nearest else "see quintic train --help"
    return f"there is no field {key}: {hint}"


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """The nearest of several dotted names: by its last part where that is right, which finds a
    field in another section, else by the whole, else by the last part; None where none is near.
    Where sections are only left out, it is the first: optim.lr and lr are optim.muon.lr."""
    *sections, tail = name.rsplit(".", 1)
    prefix = "".join(f"{section}." for section in sections)
    if same := [full for full in known if full.rsplit(".", 1)[-1] == tail]:
        if inside := [full for full in same if full.startswith(prefix)]:
            return inside[0]
        return difflib.get_close_matches(name, same, n=1, cutoff=0)[0]
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return close[0]
    tails = {full.rsplit(".", 1)[-1]: full for full in known}
    close = difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)
    return tails[close[0]] if close else None


def flatten(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The fields of a config by their dotted names, in the order of the sections."""
    pairs: list[tuple[str, Any]] = []
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            pairs += flatten(value, f"{prefix}{f.name}.")
        else:
            pairs.append((f"{prefix}{f.name}", value))
    return pairs


def field_types(section: Any, prefix: str = "") -> dict[str, Any]:
    """The type of every field, by the dotted names of `flatten`."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(section).items():
        if is_dataclass(hint):
            found |= field_types(hint, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = hint
    return found


def build(root: Any, values: Any) -> Any:
    """A config of the class `root` from nested mappings, as JSON gives them.

    Raises `QuinticError` for unknown keys and for values of another type than the field's.
    """
    return _build(root, root, values, "")


def _build(root: Any, cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise QuinticError(f"config section {prefix.rstrip('.') or 'config'} is not an object")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise QuinticError(unknown_field(root, f"{prefix}{key}"))
    arguments = {
        key: _build(root, hints[key], value, f"{prefix}{key}.")
        if is_dataclass(hints[key])
        else _convert(hints[key], value, f"{prefix}{key}")
        for key, value in values.items()
    }
    return cls(**arguments)


def _convert(hint: Any, value: Any, name: str) -> Any:
    """A JSON value as the field's type; raises `QuinticError` where it is of another."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (h for h in typing.get_args(hint) if h is not type(None))
        return _convert(hint, value, name)
    if origin is Literal:
        return value  # the section's own check names the choices
    if origin is tuple and isinstance(value, list | tuple):
        kinds = typing.get_args(hint)
        if len(kinds) == len(value):
            return tuple(_convert(k, v, name) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise QuinticError(f"{name} is {value!r}: it must be {getattr(hint, '__name__', hint)}")
