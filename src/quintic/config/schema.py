"""The fields of a config: what is true of each, their names, rules for values, and JSON.

What more than one part of quintic must know of a field is said where the field is declared, by
`setting`: nobody else keeps a list of fields.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, Final, Literal, TypeVar

from quintic.errors import QuinticError

RENAMED = {
    "model.embed_shortcut": "model.x0_skip",
    "optim.muon.coefficients": "optim.muon.ns_coefficients",
    "optim.muon.normalize": "optim.muon.normuon",
    "train.cast_once": "train.cache_bf16_weights",
    "train.predict_tokens": "train.mtp_tokens",
    "train.tensorboard": "train.log_to",
    "train.upload": "train.prefetch_to_gpu",
}
"""Fields of config format 1, the one of quintic 0.1, by the names that they have now."""

T = TypeVar("T")


@dataclass(frozen=True)
class Accepted:
    """Stands for several values of a field in `needs` and `part_of`."""

    accepts: Callable[[Any], bool]
    example: str = ""
    """How one of them is given on the command line."""


ON: Final = Accepted(bool)
"""Any value but False, None and 0."""

OTHER_TEXT = "losses on other text do not compare; sweep each by itself"
"""Why the data and what of it is evaluated are not swept."""

Needs = Mapping[str, Any]
"""Dotted names of fields, each with the value, or the tuple of values, that it must have. Where
there are several fields, one of them suffices."""


@dataclass(frozen=True)
class Facts:
    """Says what is true of a field, whatever its value is."""

    default: Any = None
    resume: Literal["fixed", "free", "schedule"] = "fixed"
    """free: a resume may change it, since it changes nothing of what is computed but rounding;
    schedule: as long as everything that changes from step to step was the same so far."""
    compare: Literal["shown", "ignored"] = "shown"
    """ignored: it tells no runs apart, since it changes neither a loss nor the time counted."""
    ranks: Literal["same", "own"] = "same"
    """own: each machine may have its own value, since its files lie elsewhere."""
    not_swept: str | None = None
    """Why a sweep cannot look for the best value, and what to do instead."""
    needs: Needs | None = None
    """A value other than the default is refused where this is not met."""
    part_of: tuple[Needs, ...] = ()
    """Like `needs`, for a setting of something that may be switched off: whoever overrides a config
    so that it is, takes the setting back to its default with it."""


def setting(default: T, *, part_of: Needs | None = None, **facts: Any) -> T:
    """Declare a field with its default and what is true of it, by the names of `Facts`."""
    whole = Facts(default, part_of=(part_of,) if part_of else (), **facts)
    return field(default=default, metadata={"facts": whole})


def section(cls: type[T], *, part_of: Needs | None = None) -> T:
    """Declare a field that is a section of its own; `part_of` holds for every field in it."""
    return field(default_factory=cls, metadata={"part_of": part_of})


@functools.cache
def _type_hints(section: Any, *, include_extras: bool = False) -> Mapping[str, Any]:
    """Return the annotations of a class; evaluating their text is most of the time of a config."""
    return typing.get_type_hints(section, include_extras=include_extras)


@functools.cache
def field_facts(root: Any) -> Mapping[str, Facts]:
    """Return what is true of every field, by the dotted names of `flatten`."""
    found: dict[str, Facts] = {}
    hints = _type_hints(root)
    for one in fields(root):
        if is_dataclass(hints[one.name]):
            outer = one.metadata.get("part_of")
            for name, facts in field_facts(hints[one.name]).items():
                whole = (outer, *facts.part_of) if outer else facts.part_of
                found[f"{one.name}.{name}"] = replace(facts, part_of=whole)
        else:
            found[one.name] = one.metadata.get("facts") or Facts(one.default)
    return found


def check_effects(config: Any) -> None:
    """Raise `QuinticError` where a field has been set that the rest leaves without effect.

    A value that is the default has not been set, wherever it comes from.
    """
    values = flatten(config)
    vain: list[tuple[str, Facts, Needs]] = [
        (name, facts, needs)
        for name, facts in field_facts(typing.cast(Any, type(config))).items()
        for needs in ((facts.needs, *facts.part_of) if values[name] != facts.default else ())
        if needs and not _met(needs, values)
    ]
    if not vain:
        return
    name, facts, needs = vain[0]
    state = ", ".join(f"{other} {values[other]}" for other in needs)
    alike = [(n, f.default) for n, f, of in vain if of == needs and of is f.needs]
    if len(alike) > 1:
        raise QuinticError(
            f"{', '.join(f'{n} {values[n]}' for n, _ in alike)} have no effect with {state}: give "
            f"{' '.join(option(n, default) for n, default in alike)}, or use {_ways_to(needs)}"
        )
    # A recipe's own value of what is switched off goes with it, whatever it was.
    leave = f"at {facts.default!r}" if needs is facts.needs else "out"
    raise QuinticError(
        f"{name} is {values[name]!r}, which has no effect with {state}: leave it {leave}, or use "
        f"{_ways_to(needs)}"
    )


def without_effect(root: Any, values: Mapping[str, Any]) -> list[str]:
    """Return the settings of what is switched off, given values by dotted names; what is left out
    has its default."""
    every = field_facts(root)
    whole = {name: facts.default for name, facts in every.items()} | dict(values)
    return [n for n, f in every.items() if not all(_met(needs, whole) for needs in f.part_of)]


def _met(needs: Needs, values: Mapping[str, Any]) -> bool:
    return any(_has(values[name], wanted) for name, wanted in needs.items())


def _has(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Accepted):
        return wanted.accepts(value)
    return value in wanted if isinstance(wanted, tuple) else bool(value == wanted)


def _ways_to(needs: Needs) -> str:
    """Return the options with which the needs are met, in words."""
    ways: list[str] = []
    for name, wanted in needs.items():
        if isinstance(wanted, Accepted):
            ways.append(option(name, wanted.example))
        else:
            choices = wanted if isinstance(wanted, tuple) else (wanted,)
            ways += [option(name, choice) for choice in choices]
    return " or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))


def option(name: str, value: Any) -> str:
    """Return the option that sets a field, by its dotted name."""
    *path, last = name.replace("_", "-").split(".")
    if value is False:
        return f"--{'.'.join([*path, f'no-{last}'])}"
    return f"--{'.'.join([*path, last])} {'' if value is True else value}".rstrip()


def advice_for_file(root: Any, message: str) -> str:
    """Return a message with the options that it advises as fields of a config file, where an option
    comes too late: the file must be right by itself."""
    types = field_types(root)

    def field_of(option: re.Match[str]) -> str:
        *path, last = option[1].replace("-", "_").split(".")
        name = ".".join([*path, last.removeprefix("no_")])
        if types.get(name) is bool:
            return f"{name} {'false' if last.startswith('no_') else 'true'}"
        return name if name in types else option[0]

    return re.sub(r"--(\w[\w.-]*\w)", field_of, message)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise QuinticError(message)


@dataclass(frozen=True)
class Rule:
    """Restricts the values of a field, in its type: `Annotated[int, Rule(...)]`."""

    holds: Callable[[Any], bool]
    words: str
    """Says the rule, after the field and its value."""


FINITE = Rule(math.isfinite, "it must be finite")
# Three such factors, as of a learning rate, a weight decay and a shape, stay within float32.
COMPUTABLE = Rule(lambda value: abs(value) <= 1e12, "it must be at most 1e12")
ABOVE_0 = Rule(lambda value: value > 0, "it must be positive")
COUNTED = Rule(lambda value: value < 2**63, "it must be less than 2**63")
ITERATED = Rule(lambda value: value <= 1000, "it must be at most 1000")
NOT_BELOW_0 = Rule(lambda value: value >= 0, "it must be zero or positive")
BETA = Rule(lambda value: 0 <= value < 1, "it must be at least 0 and less than 1")
BETA_EACH = Rule(
    lambda values: all(map(BETA.holds, values)), "both must be at least 0 and less than 1"
)

PositiveInt = Annotated[int, ABOVE_0, COUNTED]
PositiveFloat = Annotated[float, FINITE, COMPUTABLE, ABOVE_0]
NonNegativeInt = Annotated[int, NOT_BELOW_0]
NonNegativeFloat = Annotated[float, FINITE, COMPUTABLE, NOT_BELOW_0]
Beta = Annotated[float, BETA]
Betas = Annotated[tuple[float, float], BETA_EACH]


class Section:
    """Checks the fields of a section against their types' rules and choices, where it is built."""

    _name = ""

    def __init_subclass__(cls, *, name: str) -> None:
        cls._name = name

    def __post_init__(self) -> None:
        """Raise `QuinticError` where a value is not allowed, whatever the others are."""
        cls: Any = type(self)  # Any, since mypy finds no hash of a type[Self]
        for name, hint in _type_hints(cls, include_extras=True).items():
            try:
                _check_value(f"{self._name}.{name}", hint, getattr(self, name))
            except QuinticError as error:
                optional = type(None) in typing.get_args(hint)
                raise QuinticError(
                    f"{error}{_said_of_none(cls, name) if optional else ''}"
                ) from None


def _said_of_none(section: Any, name: str) -> str:
    """Return the end of a field's docstring, what None stands for; empty where it does not say."""
    (declared,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(declared, ast.ClassDef)
    for one, doc in itertools.pairwise(declared.body):
        if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == name:
            text = " ".join(ast.literal_eval(ast.unparse(doc)).split()).rstrip(".")
            return "".join(text.partition("; None: ")[1:])
    return ""


def _check_value(name: str, hint: Any, value: Any) -> None:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return
        hint, _ = typing.get_args(hint)
    for rule in getattr(hint, "__metadata__", ()):
        require(rule.holds(value), f"{name} is {value}: {rule.words}")
    if typing.get_origin(hint) is Annotated:
        hint, *_ = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (Ellipsis,):
        for one in value:
            _check_value(name, typing.get_args(hint)[0], one)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        require(
            value in choices,
            f"{name} is {value!r}: it must be one of {', '.join(map(str, choices))}",
        )


def differing_fields(one: Any, other: Any) -> list[str]:
    """Return the dotted names of the fields in which two configs differ."""
    left, right = flatten(one), flatten(other)
    return [key for key in left if left[key] != right[key]]


def unknown_field(root: Any, key: str) -> str:
    """Return the message for a field that a config class does not have, with the nearest one."""
    nearest = nearest_name(key, list(field_types(root)))
    hint = f"did you mean {nearest}?" if nearest else "see quintic train --help"
    return f"there is no field {key}: {hint}"


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """Return the nearest of several dotted names, or None where none is near.

    A name of an earlier release has become the one it has now. Else what counts is the last part
    where that is right, which finds a field in another section, then the whole, then the last part.
    Where sections are only left out, it is the first: optim.lr and lr are optim.muon.lr.
    """
    if now := RENAMED.get(name.replace("-", "_").replace(".no_", ".")):
        denied = ".no_".join(now.rsplit(".", 1)) if ".no-" in name else now
        spelled = {full.replace("-", "_"): full for full in known}
        return spelled.get(denied) or spelled.get(now)  # a switch may be none any more
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


def flatten(config: Any) -> dict[str, Any]:
    """Return the fields of a config by their dotted names, in the order of the sections."""
    cls: Any = type(config)  # Any, since mypy finds no hash of a type[Any]
    return {name: operator.attrgetter(name)(config) for name in field_types(cls)}


@functools.cache
def field_types(section: Any) -> Mapping[str, Any]:
    """Return the type of every field, by the dotted names of `flatten`."""
    found: dict[str, Any] = {}
    for name, hint in _type_hints(section).items():
        if is_dataclass(hint):
            inside = field_types(typing.cast(Any, hint))
            found |= {f"{name}.{inner}": kind for inner, kind in inside.items()}
        else:
            found[name] = hint
    return found


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings, as JSON gives them, as one by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        require("." not in key, f"config key {prefix}{key!r} has a dot: a section is an object")
        if isinstance(value, Mapping) and value:
            found |= dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def build(root: Any, values: Mapping[str, Any]) -> Any:
    """Return a config of the class `root` from values by dotted names.

    Raises `QuinticError` for unknown names and for values of another type than the field's.
    """
    hints = field_types(root)
    converted = {}
    for name, value in values.items():
        if name in hints:
            converted[name] = _convert(hints[name], value, name)
        elif not any(known.startswith(f"{name}.") for known in hints):
            raise QuinticError(unknown_field(root, name))
        elif value != {}:
            raise QuinticError(f"config section {name} is not an object")
    return _section_of(root, converted, "")


def _section_of(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    arguments = {}
    for name, hint in _type_hints(cls).items():
        if is_dataclass(hint):
            arguments[name] = _section_of(hint, values, f"{prefix}{name}.")
        elif f"{prefix}{name}" in values:
            arguments[name] = values[f"{prefix}{name}"]
    return cls(**arguments)


def _convert(hint: Any, value: Any, name: str) -> Any:
    """Return a JSON value as the field's type; raises `QuinticError` where it is of another."""
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
        if kinds[1:] == (Ellipsis,):
            kinds = kinds[:1] * len(value)
        if len(kinds) == len(value):
            return tuple(_convert(k, v, name) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        require(abs(value) < 2**1023, f"{name} is beyond what a number can be")
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise QuinticError(f"{name} is {value!r}: it must be {getattr(hint, '__name__', hint)}")
