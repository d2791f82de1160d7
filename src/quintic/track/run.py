"""An attempt from its first run to the verdict and the folder for a pull request."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from quintic import run_dir
from quintic.config import Config
from quintic.console import Console, SweepProgress, Table
from quintic.cores import available_cores
from quintic.device import processor_name
from quintic.errors import QuinticError, counted, require_package
from quintic.setup import open_data
from quintic.sweep.record import steps_done
from quintic.track.attempt import (
    ATTEMPT,
    RECORD,
    Attempt,
    TimedRun,
    begin,
    changes,
    check_folder,
    check_recipe,
    read_result,
)
from quintic.track.execute import execute
from quintic.track.record import read_records, standing_ratio, write_folder
from quintic.track.reference import check_corpus, read_reference, reference_sources
from quintic.track.texts import check_dataset, corpus_of_this_python
from quintic.track.verdict import (
    RunResult,
    Standing,
    judge,
    p_text,
    stand,
)


def run_attempt(
    config: Config,
    folder: Path,
    *,
    seeds: int,
    pairs: int,
    threads: int | None,
    processes: int,
    checkout: str | None,
    note: str | None,
) -> None:
    """Train what the folder lacks of an attempt, and say by the rules what it shows.

    Raises `QuinticError` for what is none of the track and for a run that failed, and `SystemExit`
    with 130 where a signal stopped it; finished runs are kept in either case.
    """
    require_package("scipy", "compare", "quintic track run")
    check_recipe(config)
    threads = _checked(seeds, pairs, threads, processes)
    console, reference = Console(), read_reference()
    check_folder(folder)
    corpus = corpus_of_this_python()
    check_corpus(corpus, reference, platform.python_version())
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    held = run_dir.lock(folder)
    try:
        attempt = Attempt(
            config=config,
            seeds=seeds,
            pairs=pairs,
            threads=threads,
            processes=processes,
            reference=reference,
            sources=reference_sources(checkout, reference, folder),
            hardware=f"{processor_name()}, {counted(available_cores(), 'core')}",
        )
        begin(folder, attempt)
        # Now, since it is no part of the time and no reason to begin.
        check_dataset(open_data(config, console), corpus)
        whole = _execute(attempt, folder, console)
        _conclude(attempt, folder, console, note)
    finally:
        held.release()
        if new and not (folder / ATTEMPT).exists():
            shutil.rmtree(folder)
    if not whole:
        console.line("stopped; finished runs are kept, and the same command continues")
        raise SystemExit(130)


def _checked(seeds: int, pairs: int, threads: int | None, processes: int) -> int:
    """Return the threads of a run; raises `QuinticError` for numbers that make no attempt."""
    if seeds < 2:
        raise QuinticError(f"--seeds is {seeds}: a test of a mean needs at least 2, and a record 5")
    for option, number in (("--pairs", pairs), ("--processes", processes), ("--threads", threads)):
        if number is not None and number < 1:
            raise QuinticError(f"{option} is {number}: it must be at least 1")
    cores = available_cores()
    threads = cores if threads is None else threads
    if not processes <= threads <= cores:
        raise QuinticError(
            f"--threads is {threads}: it counts those of a run over all of its processes, so it "
            f"must be from {processes} to the {counted(cores, 'core')} that are here"
        )
    return threads


def _execute(attempt: Attempt, folder: Path, console: Console) -> bool:
    runs = attempt.runs
    ended = {run for run in runs if read_result(folder, run).finished}

    def done() -> tuple[int, int]:
        return len(ended), sum(attempt.steps(run) for run in ended)

    console.line(
        f"track   {counted(len(runs), 'run')} in {folder}: {counted(attempt.pairs, 'pair')} of "
        f"{attempt.config.recipe} and the reference in turn, "
        f"{counted(attempt.threads, 'thread')}{f'; {done()[0]} done' if done()[0] else ''}"
    )
    console.line(
        "reference laptop, frozen, "
        + (
            f"trained by the quintic of commit {attempt.sources.commit or 'unknown'}"
            if attempt.sources.path
            else "trained by this quintic, since no repository here has its own: steps that have "
            "become faster since count for both"
        )
    )
    announced: set[str] = set()
    bar = SweepProgress(
        console,
        runs=len(runs),
        steps=sum(attempt.steps(run) for run in runs),
        steps_done=done()[1],
    )

    def on_change(run: TimedRun) -> None:
        if run.name not in announced:
            announced.add(run.name)
            console.line(f"training {run.name}, whose lines are in {folder / run.name}.log")
        number, steps = done()
        bar.show(number, steps + steps_done(folder / run.name), run.name)

    def on_end(result: RunResult) -> None:
        run = TimedRun(result.side, result.seed)
        ended.add(run)
        bar.ended(*done(), f"{run.name}: {_outcome(result)}")

    with bar:
        return execute(attempt, folder, console, on_change=on_change, on_end=on_end)


def _outcome(result: RunResult) -> str:
    if result.bits_per_byte is None:
        return "diverged"
    scores = " / ".join(f"{value:.4f}" for value in result.bits_per_byte)
    return f"{result.train_s:.1f} s of training, {scores} bits per byte"


def _conclude(attempt: Attempt, folder: Path, console: Console, note: str | None) -> None:
    """Print the pairs and the verdict, and write the folder for a pull request."""
    results = [found for run in attempt.runs if (found := read_result(folder, run)).finished]
    targets, records = attempt.reference.targets, read_records()
    standing = stand(results, targets)
    if results:
        console.table(_pairs_table(results), "pairs, in seconds of training and bits per byte")
    for line in _summary(standing, attempt):
        console.line(line)
    commit = next(
        (
            starts[0].get("commit")
            for result in results
            if result.side == "candidate"
            and (starts := run_dir.read_environments(folder / f"{result.seed:02}-candidate"))
        ),
        None,
    )
    verdict = judge(standing, targets, best=standing_ratio(records), commit=commit)
    console.line(f"verdict {verdict.text}")
    changed = note or changes(attempt.config, attempt.reference) or "nothing but the code"
    written = write_folder(
        folder / RECORD, attempt, folder, results, verdict, changed=changed, first=not records
    )
    if written:
        console.line(f"record  {folder / RECORD}: for a pull request, copy it over a checkout")


def _pairs_table(results: Sequence[RunResult]) -> Table:
    by_name = {(r.side, r.seed): r for r in results}
    rows = []
    for seed in sorted({r.seed for r in results}):
        sides = [by_name.get((side, seed)) for side in ("reference", "candidate")]
        seconds = [r.train_s if r else None for r in sides]
        ratio = seconds[1] / seconds[0] if seconds[0] and seconds[1] else None
        rows.append(
            [
                str(seed),
                *("-" if s is None else f"{s:.1f}" for s in seconds),
                "-" if ratio is None else f"{ratio:.3f}",
                *(
                    " / ".join(f"{v:.4f}" for v in r.bits_per_byte)
                    if r and r.bits_per_byte
                    else "diverged"
                    if r and r.diverged
                    else "-"
                    for r in sides
                ),
                *(
                    f"{r.process_s - r.train_s:.1f}" if r and r.process_s and r.train_s else "-"
                    for r in sides
                ),
            ]
        )
    header = ["pair", "reference s", "candidate s", "ratio", "reference", "candidate"]
    return Table([*header, "reference outside s", "candidate outside s"], rows)


def _summary(standing: Standing, attempt: Attempt) -> list[str]:
    """Return what the runs say, in lines."""
    lines = []
    targets = attempt.reference.targets
    if standing.bits_per_byte is not None and standing.p is not None:
        for mean, p, target in zip(standing.bits_per_byte, standing.p, targets, strict=True):
            lines.append(
                f"loss    {mean:.4f} bits per byte on {target.place}, the mean of "
                f"{counted(standing.seeds, 'seed')}; p {p_text(p)} that it is not below "
                f"{target.bits_per_byte}"
            )
    if standing.ratio is not None:
        interval = (
            f" ({standing.low:.3f} to {standing.high:.3f})" if standing.low is not None else ""
        )
        lines.append(
            f"time    {standing.ratio:.3f}{interval} of the reference's: medians "
            f"{standing.median_s:.1f} s and {standing.reference_median_s:.1f} s of "
            f"{counted(standing.pairs, 'pair')}, of which {standing.agreeing} agree"
        )
    return lines
