"""quintic report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quintic.cli.options import Report
from quintic.cli.output_file import check_writable
from quintic.console import Console
from quintic.errors import QuinticError
from quintic.report.contents import Contents, Measured, measure, note_failure, read_contents
from quintic.report.page import write_report
from quintic.run_dir import REPORT, holds_run
from quintic.trained import load_trained

LONGEST_S = 120.0
"""Seconds that measuring losses may take: enough for all but large models on a CPU."""


def run(command: Report, _arguments: Sequence[str]) -> None:
    """Write the report of a run, and say what of it is missing."""
    console = Console()
    contents = read_contents(command.run)
    path = command.run / REPORT if command.out is None else command.out
    _check_out(path)
    try:
        contents.measured = _measure(command, contents, console)
    except QuinticError as error:
        if (
            command.data is not None
            or command.tokenizer is not None
            or command.checkpoint == "best"
        ):
            raise  # what was asked for is not to be had
        note_failure(contents, error)
    write_report(contents, path)
    for text in contents.missing:
        console.line(f"missing: {text}")
    console.line(f"written {path}, {path.stat().st_size / 1000:,.0f} kB")


def _check_out(path: Path) -> None:
    """Raise `QuinticError` where the page cannot be written there."""
    if path.suffix != ".html":
        raise QuinticError(f"--out {path} ends in {path.suffix or 'nothing'!r}: it must be .html")
    check_writable(path)
    if holds_run(path.parent) and path.name != REPORT:
        raise QuinticError(
            f"--out {path} would be a file of the run in {path.parent}: name it {REPORT}, or "
            "choose another folder"
        )


def _measure(command: Report, contents: Contents, console: Console) -> Measured:
    trained = load_trained(command.run, which=command.checkpoint, device=command.device)
    contents.missing += [
        f"a checkpoint that is damaged: {text}" for text in trained.checkpoint.damaged
    ]
    path = None if command.data is None else str(command.data)
    dataset = trained.open_data(console, path=path, tokenizer=command.tokenizer)
    step = trained.checkpoint.state["step"]
    return measure(
        trained.model, dataset, contents.config, step, contents.missing, longest_s=LONGEST_S
    )
