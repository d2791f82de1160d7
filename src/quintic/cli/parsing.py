"""The command line as one of the dataclasses of `options`."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg, subcommand

from quintic.cli.errors import explain, value_of
from quintic.cli.options import (
    DEFAULT_RECIPE,
    Compare,
    Data,
    Evaluate,
    Generate,
    Recipes,
    Sweep,
    Train,
)
from quintic.config import Config
from quintic.errors import QuinticError
from quintic.recipefile import read_recipe
from quintic.recipes import RECIPES, get_recipe


def parse(arguments: list[str]) -> Any:
    """The command; raises `QuinticError` where the command line is not understood."""
    with _one_line_errors(arguments):
        return _parse(arguments)


def _parse(arguments: list[str]) -> Any:
    """The command line as one of the dataclasses above.

    What is known of a run before parsing, its recipe or the folder it resumes, gives the defaults
    that the command line replaces.
    """
    train, sweep = Train(), Sweep()
    if arguments[:1] == ["train"]:
        train = _train_defaults(arguments[1:])
    elif arguments[:1] == ["sweep"]:
        sweep = _sweep_defaults(arguments[1:])
    commands = (
        Annotated[Train, subcommand("train", default=train), arg(name="")]
        | Annotated[Sweep, subcommand("sweep", default=sweep), arg(name="")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Generate, subcommand("generate")]
        | Annotated[Compare, subcommand("compare")]
        | Annotated[Recipes, subcommand("recipes")]
        | Annotated[Data, subcommand("data")]
    )
    command = tyro.cli(
        commands,
        prog="quintic",
        description="Pretrain GPT-2-class language models with Muon.",
        args=arguments or ["--help"],
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    if isinstance(command, Train | Sweep):
        named = train.recipe if isinstance(command, Train) else sweep.recipe
        if command.recipe != named:
            raise QuinticError(_misplaced(arguments[0], command.recipe))
        if _is_file(named):
            command = replace(command, recipe=_name_of(named))
    if isinstance(command, Train) and command.resume is None and _continues(arguments):
        return replace(command, resume=command.out, out=None)
    return command


def _misplaced(command: str, recipe: str) -> str:
    """What is said of a recipe that does not come first, or of what is none."""
    if recipe not in RECIPES and not _is_file(recipe):
        return (
            f"{command} does not understand {recipe!r}: a recipe comes first, and a switch such as "
            "--train.compile or --train.no-compile takes no value"
        )
    return f"the recipe {recipe!r} must come first: quintic {command} {recipe} ..."


def _continues(arguments: list[str]) -> bool:
    """Whether a run without --resume continues what is in its --out all the same.

    Asked for by --auto-resume, and true of every restart that torchrun makes of its own.
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if not restarted and "--auto-resume" not in [a.replace("_", "-") for a in arguments]:
        return False
    out = value_of("--out", arguments)
    if out is None:
        asks = "a restart by torchrun" if restarted else "--auto-resume"
        raise QuinticError(f"{asks} continues the run in --out: name its folder with --out")
    from quintic.run_dir import holds_run

    return holds_run(Path(out))


def _train_defaults(arguments: list[str]) -> Train:
    named = _named(arguments)
    resumed = value_of("--resume", arguments)
    if resumed is None and _continues(arguments):
        resumed = value_of("--out", arguments)
    if resumed is not None and resumed != "None":
        from quintic.run_dir import read_config

        config = read_config(Path(resumed))
        if named is not None and (recipe := _name_of(named)) != config.recipe:
            raise QuinticError(
                f"{resumed} holds a run of {config.recipe}, which cannot continue as {recipe}: "
                "leave the recipe out, or name another folder"
            )
    else:
        config = _config_of(named or DEFAULT_RECIPE)
    return Train(
        recipe=named or config.recipe,
        model=config.model,
        data=config.data,
        optim=config.optim,
        train=config.train,
    )


def _sweep_defaults(arguments: list[str]) -> Sweep:
    named = _named(arguments) or DEFAULT_RECIPE
    config = _config_of(named)
    return Sweep(
        recipe=named,
        model=config.model,
        data=config.data,
        optim=config.optim,
        train=config.train,
    )


def _named(arguments: list[str]) -> str | None:
    """The recipe on a command line, which comes first."""
    return arguments[0] if arguments and not arguments[0].startswith("-") else None


def _is_file(recipe: str) -> bool:
    """Whether a recipe is named by the file that holds its config."""
    return recipe.endswith(".json")


def _config_of(recipe: str) -> Config:
    return read_recipe(Path(recipe)) if _is_file(recipe) else get_recipe(recipe)


def _name_of(recipe: str) -> str:
    return read_recipe(Path(recipe)).recipe if _is_file(recipe) else recipe


@contextlib.contextmanager
def _one_line_errors(arguments: list[str]) -> Iterator[None]:
    """Turn the library's boxed complaints on standard error into one `QuinticError`."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as error:
        if not error.code:
            raise
        cause = error.__context__
        while cause is not None:
            if isinstance(cause, QuinticError):  # a section's own check, reported in a box
                raise cause from None
            cause = cause.__context__
        raise QuinticError(explain(complaint.getvalue(), arguments)) from None
