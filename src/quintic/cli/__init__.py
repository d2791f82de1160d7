"""The `quintic` command: parse, call, print. The only package that knows the command-line library.

options.py     the commands and their options, as dataclasses
parsing.py     the command line as one of them
complaints.py  what the command-line library objects to, in one line
runs.py        train, evaluate, generate, recipes
sweeps.py      sweep
varying.py     the values of --vary
compare.py     compare
datasets.py    data fetch, build, push, info, check
command.py     all of it, and the exit code
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """As `quintic.cli.main.main`, which is imported here: processes that are spawned import what
    the command began with, and need nothing of it."""
    from quintic.cli.main import main

    main(arguments)
