"""quintic compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from quintic.cli.options import Compare
from quintic.cli.output_file import check_result_file
from quintic.compare.comparison import Comparison, compare
from quintic.compare.conclusions import conclusions
from quintic.compare.figure import draw_comparison
from quintic.compare.page import write_page
from quintic.compare.runs import read_runs
from quintic.compare.table import differences_table, results_table
from quintic.compare.task_scores import tasks_table
from quintic.console import Console
from quintic.errors import QuinticError, require_package
from quintic.files import write_json


def _write_json(comparison: Comparison, path: Path) -> None:
    write_json(path, {**comparison.to_dict(), "evidence": list(conclusions(comparison))})


WRITERS: dict[str, Callable[[Comparison, Path], None]] = {
    ".png": draw_comparison,
    ".html": write_page,
    ".json": _write_json,
}
"""Writer of `--out` by the end of the file's name."""


def run(command: Compare, _arguments: Sequence[str]) -> None:
    """Print tables and conclusions, and write what `--out` asks for."""
    require_package("scipy", "compare", "quintic compare")
    if command.out is not None:
        check_result_file(command.out, "quintic compare", "comparison")
    if command.batch_tokens is not None and command.batch_tokens < 1:
        raise QuinticError(f"--batch-tokens is {command.batch_tokens}: it must be positive")
    runs = [r for path in command.runs for r in read_runs(path, batch_tokens=command.batch_tokens)]
    if command.batch_tokens is not None and not any(run.batch_given for run in runs):
        raise QuinticError(
            f"--batch-tokens is {command.batch_tokens}, for logs that do not say how many tokens a "
            "step has, and all of these runs say it: leave it out"
        )
    comparison = compare(
        runs, target=command.target, axis=command.x, paired=command.paired, force=command.force
    )
    if command.out is not None and command.out.suffix == ".png" and not comparison.has_losses:
        raise QuinticError(
            f"--out {command.out} would draw losses, and none of these has any: name a .html or a "
            ".json file, which hold the scores on tasks"
        )
    console = Console()
    if (differences := differences_table(comparison)) is not None:
        console.table(differences, "what differs")
    if comparison.has_losses:
        console.table(results_table(comparison), "validation loss in nats per token")
    if (tasks := tasks_table(comparison.tasks)) is not None:
        console.table(tasks, "scores on tasks")
    for note in comparison.notes:
        console.line(f"note: {note}")
    for conclusion in conclusions(comparison):
        console.line(f"- {conclusion}")
    if command.out is not None:
        WRITERS[command.out.suffix](comparison, command.out)
        console.line(f"written {command.out}")
