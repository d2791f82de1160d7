"""The `quintic` command, and what becomes of everything that can go wrong in it.

Anything a user can cause ends with one line on standard error and exit code 2.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from quintic import __version__
from quintic.cli import compare, datasets, runs, sweeps
from quintic.cli.options import (
    Compare,
    DataBuild,
    DataFetch,
    DataInfo,
    DataPush,
    Evaluate,
    Generate,
    Recipes,
    Sweep,
    Train,
)
from quintic.cli.parsing import parse
from quintic.errors import QuinticError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; raises `SystemExit` with 2 for what a user got wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"quintic {__version__}")
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model writes what a terminal may not show
    try:
        _run(parse(arguments), arguments)
    except QuinticError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}: make room or choose another folder")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _fail(message: str, exit_code: int = QuinticError.exit_code) -> None:
    print(f"quintic: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(exit_code)


def _run(command: Any, arguments: Sequence[str]) -> None:
    if isinstance(command, Train):
        runs.run_train(command, arguments)
    elif isinstance(command, Sweep):
        sweeps.run_sweep(command)
    elif isinstance(command, Evaluate):
        runs.run_evaluate(command)
    elif isinstance(command, Generate):
        runs.run_generate(command)
    elif isinstance(command, Compare):
        compare.run_compare(command)
    elif isinstance(command, Recipes):
        runs.run_recipes()
    elif isinstance(command.action, DataFetch):
        datasets.run_data_fetch(command.action)
    elif isinstance(command.action, DataBuild):
        datasets.run_data_build(command.action)
    elif isinstance(command.action, DataPush):
        datasets.run_data_push(command.action)
    elif isinstance(command.action, DataInfo):
        datasets.run_data_info(command.action)
    else:
        datasets.run_data_check(command.action)
