"""quintic compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from quintic.cli.options import Compare
from quintic.errors import QuinticError

if TYPE_CHECKING:
    from quintic.compare.comparison import Comparison

SUFFIXES = (".png", ".html", ".json")


def run_compare(command: Compare) -> None:
    if command.out is not None:
        _check_out(command.out)

    from quintic.compare.comparison import compare
    from quintic.compare.conclusions import sentences
    from quintic.compare.runs import read_run
    from quintic.compare.table import differences_table, print_table, results_table
    from quintic.console import Console

    if command.batch_tokens is not None and command.batch_tokens < 1:
        raise QuinticError(f"--batch-tokens is {command.batch_tokens}: it must be positive")
    runs = [read_run(path, batch_tokens=command.batch_tokens) for path in command.runs]
    comparison = compare(
        runs, target=command.target, axis=command.x, paired=command.paired, force=command.force
    )
    console = Console()
    if (differences := differences_table(comparison)) is not None:
        print_table(console.rich, "what differs", differences)
    print_table(console.rich, "validation loss in nats per token", results_table(comparison))
    for note in comparison.notes:
        console.line(f"note: {note}")
    for sentence in sentences(comparison):
        console.line(f"- {sentence}")
    if command.out is not None:
        _write(comparison, command.out)
        console.line(f"written {command.out}")


def _check_out(path: Path) -> None:
    """Raise `QuinticError` where `--out` cannot be written, or holds something else already."""
    from quintic.run_dir import CONFIG

    if path.suffix not in SUFFIXES:
        raise QuinticError(
            f"--out {path} ends in {path.suffix or 'nothing'!r}: it must end in .png for a figure, "
            ".html for a page or .json for the numbers"
        )
    if not path.parent.is_dir():
        raise QuinticError(f"--out {path}: there is no folder {path.parent}; create it first")
    if not path.exists():
        return
    if path.is_dir():
        raise QuinticError(f"--out {path} is a folder: name a file")
    if (path.parent / CONFIG).exists():
        raise QuinticError(
            f"--out {path} would replace a file of the run in {path.parent}: choose another name"
        )
    if path.suffix == ".json":
        try:
            own = "quintic compare" in json.loads(path.read_text())
        except (ValueError, TypeError):
            own = False
        if not own:
            raise QuinticError(
                f"--out {path} exists and is no comparison: choose another name, or remove it"
            )


def _write(comparison: Comparison, path: Path) -> None:
    from quintic.files import replacing

    if path.suffix == ".png":
        from quintic.compare.figure import draw_comparison

        draw_comparison(comparison, path)
    elif path.suffix == ".html":
        from quintic.compare.page import write_page

        write_page(comparison, path)
    else:
        from quintic.compare.conclusions import sentences

        found = {**comparison.to_dict(), "evidence": list(sentences(comparison))}
        with replacing(path) as file:
            file.write(json.dumps(found, indent=1, allow_nan=False).encode() + b"\n")
