"""quintic track list and run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from quintic.cli.interrupt import keeping_interrupts
from quintic.cli.options import Track, TrackRun
from quintic.cli.output_file import check_writable
from quintic.cli.parsing import opening_notes
from quintic.config.schema import require
from quintic.console import Console
from quintic.recipes import folder_stem
from quintic.track.record import read_records
from quintic.track.table import draw_history, markdown, records_table, remark


def run(command: Track, arguments: Sequence[str]) -> None:
    """List the records, or make an attempt at one."""
    if isinstance(command.action, TrackRun):
        for note in opening_notes(command.action.config, arguments):
            print(note)
        _attempt(command.action)
        return
    figure = command.action.figure
    require(
        not (command.action.json and command.action.markdown),
        "--json and --markdown are two forms of the same list: give one",
    )
    if figure is not None:
        require(figure.suffix == ".png", f"--figure {figure}: the figure's name must end in .png")
        check_writable(figure, "--figure")
    console, records = Console(), read_records()
    if command.action.json:
        print(json.dumps([asdict(record) for record in records], indent=1))
    elif command.action.markdown:
        print(markdown(records))
    elif records:
        console.table(records_table(records), "training time, of the reference's beside it")
        for record in records:
            console.line(remark(record))
    else:
        console.line("no record yet: quintic track run RECIPE makes an attempt at one")
    if figure is not None:
        draw_history(records, figure)


def _attempt(asked: TrackRun) -> None:
    # Here, since it imports PyTorch, which takes seconds.
    with keeping_interrupts():
        from quintic.track.run import run_attempt

    run_attempt(
        asked.config,
        asked.out or Path("runs") / f"{folder_stem(asked.config.recipe)}-track",
        seeds=asked.seeds,
        pairs=asked.pairs,
        threads=asked.threads,
        processes=asked.processes,
        checkout=asked.reference_checkout,
        note=asked.note,
    )
