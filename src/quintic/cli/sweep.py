"""quintic sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quintic.cli.grid import parse_vary
from quintic.cli.interrupt import keeping_interrupts
from quintic.cli.options import Sweep
from quintic.cli.parsing import opening_notes
from quintic.errors import QuinticError
from quintic.files import check_name
from quintic.recipes import folder_stem
from quintic.sweep.plan import make_plan


def run(command: Sweep, arguments: Sequence[str]) -> None:
    """Run a sweep, or go on with it, and say which values are best."""
    if command.jobs < 1:
        raise QuinticError(f"--jobs is {command.jobs}: it must be at least 1")
    for note in opening_notes(command.config, arguments):
        print(note)
    varied = [parse_vary(text) for text in command.vary]
    plan = make_plan(command.config, varied, seeds=command.seeds, draws=command.random)
    folder = command.out or Path("runs") / f"{folder_stem(command.config.recipe)}-sweep"
    check_name(folder)
    # Here, since it imports PyTorch, which takes seconds: not for a mistyped value.
    with keeping_interrupts():
        from quintic.sweep.run import run_sweep

    run_sweep(plan, folder, jobs=command.jobs)
