"""The ladder to the record: `python -m bench.ladder --data DIR`, `python -m bench.ladder laptop`.

`modded` at a size that a CPU carries, and then one technique of the speedrun at a time
(bench/ladder/techniques.py) on top of those that were kept, three seeds each; or, on the embedded
corpus, from `laptop-plain` to `laptop` and to what that does without. A technique is kept where its
final loss is lower with p < 0.05 (Welch's test, two-sided). `--jobs` runs are trained at once; the
same command goes on after a stop.

It writes docs/results/ladder.json, ladder.png and of each run config, environment and metrics,
which `quintic compare docs/results/ladder/*` reads; for the other, laptop-ladder. With other seeds,
or some techniques only, give what it writes another `--name`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.changes import parse_changes
from bench.ladder.climb import Rung, climb
from bench.ladder.figure import draw_ladder
from bench.ladder.techniques import LADDERS, SMALL_GAINS, Ladder
from bench.results import RESULTS, print_table, write_result
from bench.trainings import copy_records, ending_in_a_line
from quintic.compare.statistics import summarize
from quintic.errors import QuinticError

HEADER = ("rung", "kept", "final loss", "to the last kept", "95% interval", "p")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ladder", choices=LADDERS, nargs="?", default="modded")
    parser.add_argument("--data", help="of modded: a dataset with a vocabulary of 4,096")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="runs/ladder, or runs/laptop-ladder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of what is written into the results, as of --out")
    parser.add_argument(
        "--set", type=parse_changes, nargs="*", default=[], metavar="FIELD=VALUE",
        help="of every run",
    )  # fmt: skip
    parser.add_argument("--only", nargs="*", metavar="TECHNIQUE", help="these, in this order")
    options = parser.parse_args(arguments)
    with ending_in_a_line("bench.ladder"):
        _run(options)


def _run(options: argparse.Namespace) -> None:
    for number in ("seeds", "jobs"):
        if (value := getattr(options, number)) < 1:
            raise QuinticError(f"--{number} is {value}: it must be at least 1")
    ladder = LADDERS[options.ladder]
    if options.data is None and options.ladder == "modded":
        raise QuinticError("the text of modded's ladder is not known: name its folder with --data")
    out, name = options.out or Path("runs") / ladder.name, options.name or ladder.name
    there = {technique.name: technique for technique in (*ladder.techniques, SMALL_GAINS)}
    for only in options.only or ():
        if only not in there:
            raise QuinticError(f"there is no technique {only!r}: they are {', '.join(there)}")
    chosen = ladder.techniques if options.only is None else [there[name] for name in options.only]
    changes = {} if options.data is None else {"data.path": options.data}
    for more in options.set:
        changes |= more
    rungs: list[Rung] = []
    for rung in climb(
        ladder.foot(changes),
        chosen,
        out,
        seeds=range(options.first_seed, options.first_seed + options.seeds),
        jobs=options.jobs,
        say=lambda text: print(text, flush=True),
        scale=ladder.scale,
    ):
        rungs.append(rung)
        _write(rungs, options.results, name, ladder)  # after every rung, so that a stop loses none
        for folder in sorted(out.glob(f"{len(rungs) - 1:02}-{rung.name}-seed*/")):
            copy_records(folder, options.results / name / folder.name)
        print_table(HEADER, [_row(rung) for rung in rungs])


def _write(rungs: Sequence[Rung], results: Path, name: str, ladder: Ladder) -> None:
    figures = {
        "unit": ladder.unit,
        "rungs": [{**asdict(rung), "kept": rung.kept} for rung in rungs],
    }
    write_result(name, figures, torch.device("cpu"), module="bench.ladder", folder=results)
    draw_ladder(rungs, results / f"{name}.png", ladder.unit)


def _row(rung: Rung) -> tuple[Any, ...]:
    losses = [loss for loss in rung.losses.values() if loss is not None]
    found = rung.difference
    final = "diverged"
    if losses:
        seen = summarize(losses)
        final = f"{seen.mean:.4f}" + ("" if seen.error is None else f" ± {seen.error:.4f}")
    return (
        rung.name,
        "yes" if rung.kept else "no",
        final,
        "" if found is None else f"{found.value:+.4f}",
        "" if found is None or found.low is None else f"{found.low:+.4f} to {found.high:+.4f}",
        "" if found is None or found.p is None else f"{found.p:.2g}",
    )


if __name__ == "__main__":
    main()
