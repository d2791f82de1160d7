"""What the command-line library objects to, in one line: the value, the rule and the way out."""

from __future__ import annotations

import difflib
import re
import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal

from quintic.cli.options import COMMANDS
from quintic.config import nearest_name


def explain(boxed: str, arguments: list[str]) -> str:
    """A complaint of the command-line library, in a box and on a terminal in colour, as one line:
    the value, the rule and the way out."""
    rows = [re.sub(r"\x1b\[[\d;]*m", "", row).strip(" |│") for row in boxed.splitlines()]
    text = " ".join(row for row in rows[1:] if row.strip("-─╰╯'+"))
    text = " ".join(re.split(r"For full helptext|Perhaps you meant", text)[0].split())
    name = next((n for n in (" ".join(arguments[:2]), *arguments[:1]) if n in COMMANDS), "")
    options = _options(COMMANDS[name]) if name else {}
    way_out = f"see {' '.join(['quintic', *name.split()])} --help"

    if not name:
        if found := re.search(r"^Expected one of \{(.*)\}", text):
            return f"{arguments[0]} needs one of {found[1]}: see quintic {arguments[0]} --help"
        if found := re.search(r"options: (\S+?)(?:, .*|) Available subcommands: (.*)", text):
            close = difflib.get_close_matches(found[1], found[2].split(", "), n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            return f"there is no command {found[1]!r}: {hint}the commands are {found[2]}"
    for argument in arguments if name else ():
        option = argument.split("=")[0].replace("_", "-")
        if argument.startswith("--") and option not in options:
            nearest = nearest_name(option.removeprefix("--"), [o[2:] for o in options])
            hint = f"did you mean --{nearest}?" if nearest else way_out
            return f"there is no option {argument.split('=')[0]}: {hint}"
    if found := re.search(r"^Unrecognized options: (\S+?)(?:,|$)", text):
        return f"{name} does not understand {found[1]!r}: {way_out}"
    if found := re.search(r"Missing from .+?: \S+ (.+?)\.? \(required\)", text):
        return f"{name} needs the {found[1][0].lower()}{found[1][1:]}: {way_out}"
    if found := re.search(r"Missing value for argument '(.+?)'. Expected (\d+)", text):
        return f"{found[1]} needs {kind_of(options.get(found[1]))}: {way_out}"
    if found := re.search(r"invalid choice '(.*)' for argument '(.+?)'. .* one of \((.*)\)", text):
        return f"{found[2]} is {found[1]!r}: it must be one of {found[3].replace(chr(39), '')}"
    if found := re.search(r"Error parsing (--\S+):", text):
        kind = options.get(found[1])
        given = [a if not a.startswith("--") else a.replace("_", "-") for a in arguments]
        value = value_of(found[1], given, 2 if typing.get_origin(kind) is tuple else 1)
        return f"{found[1]} is {value!r}: it must be {kind_of(kind)}"
    return text


def _options(command: Any, prefix: str = "--") -> dict[str, Any]:
    """The options of a command, each with its type; a switch also by the name that denies it."""
    options: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(command).items():
        name = name.replace("_", "-")
        if is_dataclass(hint):
            options |= _options(hint, f"{prefix}{name}.")
        else:
            options[f"{prefix}{name}"] = hint
        if hint is bool:
            options[f"{prefix}no-{name}"] = hint
    return options


def kind_of(hint: Any) -> str:
    """What a value of a type is called."""
    parts = typing.get_args(hint)
    if type(None) in parts:
        return f"{kind_of(parts[0])} or None"
    if typing.get_origin(hint) is tuple:
        return f"{len(parts)} values, each {kind_of(parts[0])}"
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(parts)}"
    return _KINDS.get(hint, "a value")


_KINDS = {int: "an integer", float: "a number", bool: "True or False", Path: "a folder"}


def value_of(option: str, arguments: list[str], count: int = 1) -> str | None:
    """What is given for an option, the last time that it is."""
    for i, argument in reversed(list(enumerate(arguments))):
        if argument == option and i + 1 < len(arguments):
            return " ".join(arguments[i + 1 : i + 1 + count])
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None
