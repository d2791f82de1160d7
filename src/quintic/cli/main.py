"""The `quintic` command, and what becomes of everything that can go wrong in it.

Anything a user can cause ends with one line on standard error and exit code 2.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword

from quintic import __version__
from quintic.cli.interrupt import keeping_interrupts
from quintic.errors import QuinticError, memory_reason, reason, way_out
from quintic.openmp import spin_less


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; raises `SystemExit` with 2 for what a user got wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"quintic {__version__}")
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model writes what a terminal may not show
    try:
        # Here, since processes that are spawned import what the command began with and need none of
        # it; and within, since a Ctrl-C may come while it is imported.
        with keeping_interrupts():
            from quintic.cli.parsing import parse

            command = parse(arguments)
            spin_less()  # before PyTorch is imported
            # Only now, since PyTorch takes seconds to import: not for --help or a mistyped option.
            word = arguments[0]
            module = import_module(f"quintic.cli.{word}{'_' * iskeyword(word)}")
        module.run(command, arguments)
    except QuinticError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does: nobody is left to tell.
        from quintic.console import silence_stdout

        silence_stdout()
        raise SystemExit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{reason(error)}: {way_out(error)}")
    except (MemoryError, RuntimeError) as error:
        if (found := memory_reason(error)) is None:
            raise
        _fail(f"the memory does not suffice ({found}): make the model or its batch smaller")
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # else another process says it
            print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _fail(message: str, exit_code: int = QuinticError.exit_code) -> None:
    print(f"quintic: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(exit_code)
