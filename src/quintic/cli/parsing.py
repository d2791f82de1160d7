"""The command line as one of the dataclasses of `options`, or one line that says what is wrong."""

from __future__ import annotations

import difflib
import itertools
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

# Private to tyro, and this module is its one user: pyproject.toml names the version it is part of.
from tyro._errors import (
    BadValue,
    InstantiationFailure,
    InvalidChoice,
    MissingArgs,
    MissingSubcommand,
    ParseErrorEvent,
    UnrecognizedArgs,
    on_parse_error,
)
from tyro.conf import Positional, arg, subcommand

from quintic.cli.options import (
    COMMANDS,
    DEFAULT_RECIPE,
    Compare,
    Data,
    Evaluate,
    Export,
    Generate,
    Import,
    Muon,
    Plan,
    Recipes,
    Report,
    Scale,
    Sweep,
    Track,
    TrackRun,
    Train,
    Watch,
)
from quintic.config import Config, flatten, from_the_start, nearest_name
from quintic.errors import QuinticError
from quintic.ladder import parse_rung, with_tokens_per_parameter
from quintic.recipes import find_recipe, get_recipe

APPENDED = ("--vary",)
"""Options that may be given several times, each time for one value more."""

SECTIONS = ("model", "data", "optim", "train")

TRAINING = ("train", "sweep", "plan", "track run")
"""Commands that take a recipe and every field of its config."""


def _is_instance(typ: Any, value: Any) -> bool:
    """Say what tyro's function of this name says, where it can be said without typeguard, whose
    import takes as long as tyro's: of what has no default, and of `str | None`."""
    if tyro._singleton.is_sentinel(value):
        return True
    if isinstance(typ, types.UnionType):
        return any(_is_instance(part, value) for part in typing.get_args(typ))
    return _tyro_is_instance(typ, value)


_tyro_is_instance, tyro._resolver.is_instance = tyro._resolver.is_instance, _is_instance


def parse(arguments: list[str]) -> Any:
    """Return the command; raises `QuinticError` where the command line is not understood.

    What is known of a run before parsing, its recipe or the folder it resumes, gives the defaults
    that the command line replaces.
    """
    if arguments[:1] == ["track"] and arguments[1:] != ["--help"]:
        plain = all(argument.startswith("-") for argument in arguments[1:2])
        arguments = ["track", *["list"][:plain], *arguments[1:]]
    name, *rest = words = arguments or ["--help"]
    _check_options(arguments)
    called = _name(arguments)
    trains = called in TRAINING
    rest = arguments[len(called.split()) :] if trains else rest
    recipe, base = _defaults(name, rest) if trains else ("", Config())
    sections: dict[str, Any] = {name: getattr(base, name) for name in SECTIONS}
    if (rung := parse_rung(recipe)) is not None:
        sections["tokens_per_parameter"] = rung.tokens_per_parameter
    if name == "train" and (init_from := _init_from(rest)) is not None:
        sections["model"] = init_from.model
    commands = (
        Annotated[Train, subcommand("train", default=Train(recipe, **sections)), arg(name="")]
        | Annotated[Sweep, subcommand("sweep", default=Sweep(recipe, **sections)), arg(name="")]
        | Annotated[Plan, subcommand("plan", default=Plan(recipe, **sections)), arg(name="")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Generate, subcommand("generate")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Import, subcommand("import")]
        | Annotated[Compare, subcommand("compare")]
        | Annotated[Scale, subcommand("scale")]
        | Annotated[Watch, subcommand("watch")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Recipes, subcommand("recipes")]
        | Annotated[Data, subcommand("data")]
        | Annotated[Muon, subcommand("muon")]
        | Annotated[
            Track,
            subcommand("track", default=Track(TrackRun(recipe, **sections)) if trains else None),
        ]
    )

    def refuse(event: ParseErrorEvent) -> None:
        if message := _explain(event, arguments):
            raise QuinticError(message)

    with on_parse_error(refuse):
        command = tyro.cli(
            commands,
            prog="quintic",
            description="Pretrain GPT-2-class language models with Muon.",
            args=words,
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
    asked = command.action if isinstance(command, Track) else command
    if isinstance(asked, Train | Sweep | Plan | TrackRun):
        if asked.recipe != recipe:
            given = asked.recipe
            raise QuinticError(
                f"the recipe {given!r} must come first: quintic {called} {given} ..."
                if given.endswith(".json") or find_recipe(given)
                else f"{called} does not understand {given!r}: a recipe comes first, and a switch "
                "such as --train.compile or --train.no-compile takes no value"
            )
        checked = replace(_checked(asked, base, rest), recipe=base.recipe)
        command = Track(checked) if isinstance(checked, TrackRun) else checked
    if isinstance(command, Train) and _continues(rest):
        # However it began, it is a run like any other now, and a launcher may start it once more.
        command = replace(command, force_data=False, fresh_cooldown=False, init_from=None)
        command = replace(command, checkpoint="newest", auto_resume=True)
        return replace(command, resume=command.out, out=None)
    return command


def _check_options(arguments: list[str]) -> None:
    """Raise `QuinticError` for what would be taken in silence for something else: a switch with a
    value, and an option of the command itself that is given twice. Fields of the config may be, and
    `repeated_fields` says so."""
    command = COMMANDS.get(_name(arguments))
    options = _options(command) if command else []
    for argument, following in itertools.pairwise([*arguments, ""]):
        given, equals, value = argument.partition("=")
        given = given.replace("_", "-")
        *section, last = (
            given.removeprefix("--").removeprefix("no-").replace(".no-", ".").split(".")
        )
        switch, denial = (f"--{'.'.join([*section, word])}" for word in (last, f"no-{last}"))
        if not given.startswith("--") or denial not in options:
            continue
        if equals or following.lower() in ("true", "false", "yes", "no", "on", "off"):
            raise QuinticError(
                f"{given} is {(value if equals else following)!r}, and a switch takes no value: "
                f"give {switch} for True and {denial} for False"
            )
    given_options = [a.partition("=")[0].replace("_", "-") for a in arguments]
    for option in options:
        if given_options.count(option) > 1 and "." not in option and option not in APPENDED:
            raise QuinticError(
                f"{option} is given {given_options.count(option)} times: give it once"
            )


def _checked(
    command: Train | Sweep | Plan | TrackRun, base: Config, arguments: list[str]
) -> Train | Sweep | Plan | TrackRun:
    """Return the command with its sections checked as one config; what the command line switches
    off takes the recipe's settings of it along, but none that an option names."""
    given = {
        name: value for name, value in flatten(command).items() if name.split(".")[0] in SECTIONS
    }
    before = flatten(base)
    options = (a.partition("=")[0].removeprefix("--") for a in arguments if a.startswith("--"))
    named = {option.replace("-", "_").replace(".no_", ".") for option in options}
    changes = {name: v for name, v in given.items() if v != before[name] or name in named}
    config = base.override(changes)
    return replace(command, **{name: getattr(config, name) for name in SECTIONS})


def _defaults(name: str, arguments: list[str]) -> tuple[str, Config]:
    """Return the recipe that the command line names, or else the default, and its config or that
    of the run to be resumed."""
    named = arguments[0] if arguments and not arguments[0].startswith("-") else None
    resumed = value_of("--resume", arguments) if name == "train" else None
    if name == "train" and _continues(arguments):
        resumed = value_of("--out", arguments)
    ratio = _tokens_per_parameter(arguments)
    if resumed is None or resumed == "None":
        recipe = named or DEFAULT_RECIPE
        base = get_recipe(recipe if ratio is None else with_tokens_per_parameter(recipe, ratio))
        begun = _init_from(arguments) is not None and not base.is_imported
        return recipe, base if begun else from_the_start(base)

    from quintic.run_dir import read_config

    config = read_config(Path(resumed))
    wanted = get_recipe(named).recipe if named and named.endswith(".json") else named
    if ratio is not None:
        wanted = with_tokens_per_parameter(named or config.recipe, ratio)
    if wanted is not None and wanted != config.recipe:
        raise QuinticError(
            f"{resumed} holds a run of {config.recipe}, which cannot continue as {wanted}: leave "
            f"{'the recipe' if ratio is None else '--tokens-per-parameter'} out, or name another "
            "folder"
        )
    return named or config.recipe, config


def _tokens_per_parameter(arguments: list[str]) -> float | None:
    """Return what --tokens-per-parameter gives; None where it is not there, or no number, which the
    parser refuses."""
    spelled = [a.replace("_", "-") if a.startswith("--") else a for a in arguments]
    try:
        return float(value_of("--tokens-per-parameter", spelled) or "none")
    except ValueError:
        return None


def _init_from(arguments: list[str]) -> Config | None:
    """Return the config of the run whose weights a new run begins with."""
    origin = value_of("--init-from", arguments) or value_of("--init_from", arguments)
    if origin is None or origin == "None" or _continues(arguments):
        return None
    from quintic.run_dir import read_config

    return read_config(Path(origin))


def _continues(arguments: list[str]) -> bool:
    """Return whether a run continues what is in its --out, however that began.

    Asked for by --auto-resume, and true of every restart that torchrun makes of its own.
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if not restarted and "--auto-resume" not in [a.replace("_", "-") for a in arguments]:
        return False
    out = value_of("--out", arguments)
    if out is None:
        if value_of("--resume", arguments) is not None:
            return False
        asks = "a restart by torchrun" if restarted else "--auto-resume"
        raise QuinticError(f"{asks} continues the run in --out: name its folder with --out")
    from quintic.run_dir import holds_run

    return holds_run(Path(out))


def _explain(event: ParseErrorEvent, arguments: list[str]) -> str | None:
    """Return the value, the rule and the way out; None for an event of another kind, which tyro
    prints and exits."""
    first, name = arguments[0], _name(arguments)
    way_out = f"see {' '.join(['quintic', *name.split()])} --help"
    if isinstance(event, MissingSubcommand):
        choices = ", ".join(event.subcommand_spec.parser_from_name)
        return f"{first} needs one of {choices}: see quintic {first} --help"
    if not name:
        return _no_command(arguments)
    options = _options(COMMANDS[name])
    for argument in arguments:
        given = argument.split("=")[0]
        if given.startswith("--") and (option := given.replace("_", "-")) not in options:
            nearest = nearest_name(option.removeprefix("--"), [o[2:] for o in options])
            hint = f"did you mean --{nearest}?" if nearest else way_out
            return f"there is no option {given}: {hint}"
    if isinstance(event, UnrecognizedArgs):
        return f"{name} does not understand {event.tokens[0]!r}: {way_out}"
    if isinstance(event, MissingArgs):
        missing = event.missing_arguments[0].arg
        helptext = missing.field.helptext
        text = (helptext() if callable(helptext) else helptext) or "?"
        text = f"the {text[0].lower()}{text[1:].rstrip('.')}"
        option = missing.display_name()
        what = f"{option}, {text}" if option.startswith("--") else text
        return f"{name} needs {what}: {way_out}"
    if isinstance(event, InstantiationFailure) and event.argument is None:
        return event.message  # a section's own check
    if not isinstance(event, BadValue | InvalidChoice | InstantiationFailure):
        return None
    assert event.argument is not None
    option, kind = event.argument.display_name(), event.argument.field.type_stripped
    if isinstance(event, BadValue):
        return f"{option} needs {kind_of(kind)}: {way_out}"
    spelled = [a.replace("_", "-") if a.startswith("--") else a for a in arguments]
    value = value_of(option, spelled, 2 if typing.get_origin(kind) is tuple else 1)
    if typing.get_args(kind)[1:] == (Ellipsis,):
        each = typing.get_args(kind)[0]
        names, known = _values_of(option, spelled)[-1], typing.get_args(each)
        value = next((name for name in names if name not in known), value)
        return f"{option} has {value!r}: each must be {kind_of(each)}"
    return f"{option} is {value!r}: it must be {kind_of(kind)}"


def _name(arguments: list[str]) -> str:
    """Return the words that name the command; empty where they name none."""
    return next((n for n in (" ".join(arguments[:2]), *arguments[:1]) if n in COMMANDS), "")


def _no_command(arguments: list[str]) -> str:
    grouped = any(name.startswith(f"{arguments[0]} ") for name in COMMANDS)
    *group, given = arguments[:2] if grouped else arguments[:1]
    known = [name.split() for name in COMMANDS]
    names = list(dict.fromkeys(n[len(group)] for n in known if n[: len(group)] == group))
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"there is no command {given!r}: {hint}the commands are {', '.join(names)}"


def _options(command: Any, prefix: str = "--") -> list[str]:
    """Return the options of a command, without what it takes by position; a switch also by the name
    that denies it."""
    options: list[str] = []
    annotated = typing.get_type_hints(command, include_extras=True)
    for name, hint in typing.get_type_hints(command).items():
        marks = getattr(annotated[name], "__metadata__", ())
        if set(typing.cast(Any, Positional)[hint].__metadata__).intersection(marks):
            continue
        # Another name than the field's, where `arg` gives one: --from cannot be a field.
        given = [getattr(mark, "name", None) for mark in marks]
        name = next(filter(None, given), name).replace("_", "-")
        if is_dataclass(hint):
            options += _options(hint, f"{prefix}{name}.")
        else:
            options.append(f"{prefix}{name}")
        if hint is bool:
            options.append(f"{prefix}no-{name}")
    return options


def kind_of(hint: Any) -> str:
    """Return what a value of a type is called."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return kind_of(parts[0])
    if type(None) in parts:
        return f"{kind_of(parts[0])} or None"
    if typing.get_origin(hint) is tuple and parts[1:] == (Ellipsis,):
        each = f", each {kind_of(parts[0])}" if typing.get_origin(parts[0]) is Literal else ""
        return f"values with spaces between them{each}"
    if typing.get_origin(hint) is tuple:
        return f"{len(parts)} values, each {kind_of(parts[0])}"
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(parts)}"
    return _KINDS.get(hint, "a value")


_KINDS = {int: "an integer", float: "a number", bool: "True or False", Path: "a folder"}


def value_of(option: str, arguments: list[str], count: int = 1) -> str | None:
    """Return what is given for an option, the last time that it is."""
    given = [words for words in _values_of(option, arguments) if words]
    return " ".join(given[-1][:count]) if given else None


def _values_of(option: str, arguments: list[str]) -> list[list[str]]:
    """Return the words that follow an option, each time that it is given."""
    found: list[list[str]] = []
    follows = False
    for argument in arguments:
        if argument == option or argument.startswith(f"{option}="):
            found.append(argument.split("=", 1)[1:])
            follows = argument == option
        elif argument.startswith("--"):
            follows = False
        elif follows:
            found[-1].append(argument)
    return found


def repeated_fields(arguments: Sequence[str]) -> list[str]:
    """Return in words which fields of the config are given several times, otherwise each time: the
    last one counts, so that a command can be repeated with a change at its end."""
    given: dict[str, list[str]] = {}
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option = argument.partition("=")[0].replace("_", "-").replace(".no-", ".")
            given.setdefault(option, []).append(argument)
        elif option:
            given[option][-1] += f" {argument}"
    return [
        f"note: {option} is given {len(times)} times: {times[-1]} counts"
        for option, times in given.items()
        if len(set(times)) > 1 and option.removeprefix("--").split(".")[0] in SECTIONS
    ]


def opening_notes(config: Config, arguments: Sequence[str]) -> list[str]:
    """Return what must be said of a command line before a config is trained: `repeated_fields`, and
    which sizes of a rung it replaces, from which nothing else follows then."""
    notes = repeated_fields(arguments)
    if (rung := parse_rung(config.recipe)) is None:
        return notes
    given = {a.partition("=")[0].replace("_", "-") for a in arguments if a.startswith("--")}
    chosen = flatten(config)
    for name in ("model.layers", "model.width", "train.batch_tokens"):
        option, own = f"--{name.replace('_', '-')}", rung.changes[name]
        if option in given and chosen[name] != own:
            notes.append(
                f"note: {option} {chosen[name]} replaces the {own} of {config.recipe} and nothing "
                "else: steps, rates and all other fields stay those of the rung"
            )
    return notes
