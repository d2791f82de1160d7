"""quintic export."""

from __future__ import annotations

from collections.abc import Sequence

from quintic.cli.options import Export
from quintic.console import Console
from quintic.errors import QuinticError
from quintic.export.export import check_out, export
from quintic.export.source import open_source


def run(command: Export, _arguments: Sequence[str]) -> None:
    """Write a run's model in the format of another tool, verified, and upload it if asked to."""
    out = command.run / "export" / command.to if command.out is None else command.out
    if command.push is not None:
        raise QuinticError("--push is not written yet: leave it out")
    check_out(out)
    console = Console()
    source = open_source(
        command.run, console, which=command.checkpoint, tokenizer=command.tokenizer
    )
    export(source, command.to, out, console.line)
    console.line(f"written {out}")
