"""The runs of an attempt, one after another: each is `quintic train` in a process of its own.

A run that was interrupted is dropped and begins again, since its time counts; one that has finished
is kept, with its time and its score.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, Popen

from quintic.console import Console
from quintic.distributed.signals import GracefulShutdown
from quintic.errors import QuinticError
from quintic.files import write_json
from quintic.metrics_file import METRICS, read_records
from quintic.openmp import SPIN_COUNT
from quintic.run_checkpoints import checkpoints
from quintic.run_dir import CHECKPOINTS, read_environments
from quintic.sweep.execute import DIVERGED, USER_ERROR, run_environment
from quintic.track.attempt import (
    Attempt,
    TimedRun,
    read_result,
    sources_digest,
    write_result,
)
from quintic.track.clock import training_seconds
from quintic.track.reference import PACKAGE
from quintic.track.score import bits_per_byte
from quintic.track.verdict import RunResult

POLL_S = 1.0
"""Seconds between two looks at a run, each of which takes a core from it for a moment."""
COMPILED = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Variables that name where code is kept that was compiled."""


class StoppedError(Exception):
    """A signal asked to stop."""


def execute(
    attempt: Attempt,
    folder: Path,
    console: Console,
    *,
    on_change: Callable[[TimedRun], None],
    on_end: Callable[[RunResult], None],
) -> bool:
    """Train and score every run that is not finished; return False where SIGINT or SIGTERM stopped
    it.

    `on_change` is called now and then with the run that goes on, `on_end` after each. Raises
    `QuinticError` where a run fails, which ends the attempt until it is started again.
    """
    with GracefulShutdown().handling_signals() as stop:
        try:
            for run in attempt.runs:
                result = read_result(folder, run)
                if result.finished:
                    continue
                if result.train_s is None:
                    result = _train(attempt, run, folder, stop, on_change)
                if not result.finished:
                    result = _score(attempt, run, folder, console, stop, result)
                on_end(result)
        except StoppedError:
            return False
    return True


def _train(
    attempt: Attempt,
    run: TimedRun,
    folder: Path,
    stop: GracefulShutdown,
    on_change: Callable[[TimedRun], None],
) -> RunResult:
    place, log_path = folder / run.name, folder / f"{run.name}.log"
    sources = attempt.sources.path if run.side == "reference" else None
    digest = sources_digest(sources or PACKAGE)
    with log_path.open("ab") as log, _compiled_anew(folder / f"{run.name}.compiled") as compiled:
        try:  # the lock goes with the run's standard output, so it outlives a killed attempt
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise QuinticError(
                f"{run.name} is still trained by an earlier start of this attempt, which was "
                "killed: wait for it to end, or end it, and start again"
            ) from None
        log.truncate(0)
        shutil.rmtree(place, ignore_errors=True)
        config = folder / f"{run.name}.json"
        write_json(config, attempt.config_of(run))
        environment = {**run_environment(1), **dict.fromkeys(COMPILED, str(compiled))}
        if environment.get("GOMP_SPINCOUNT") == str(SPIN_COUNT):
            # Chosen by this process for itself; each quintic chooses, or does not, on its own.
            del environment["GOMP_SPINCOUNT"]
        command = [sys.executable, "-m", "quintic", "train", str(config), "--out", str(place)]
        processes = 1 if run.side == "reference" else attempt.processes
        environment["OMP_NUM_THREADS"] = str(attempt.threads // processes)
        if processes > 1:
            command += ["--procs", str(processes)]
        if sources is not None:
            environment["PYTHONPATH"] = str(sources)
            command.insert(1, "-P")  # before a quintic in the folder that this was started in
        began = time.perf_counter()
        process = Popen(
            command,
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches this process alone
        )
        try:
            while process.poll() is None:
                if stop.requested:
                    raise StoppedError
                on_change(run)
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        process_s = time.perf_counter() - began
    if sources_digest(sources or PACKAGE) != digest:
        raise QuinticError(
            f"the sources of quintic changed while {run.name} was trained, which is dropped: bring "
            "them back as they were, or begin again in another --out"
        )
    result = RunResult(run.side, run.seed)
    if process.returncode:
        message = _last_words(log_path) or f"ended with exit code {process.returncode}"
        if process.returncode != USER_ERROR or not DIVERGED.search(message):
            raise QuinticError(f"{run.name} failed ({message}): the same command tries it again")
        result = replace(result, diverged=message)
    else:
        if len(read_environments(place)) != 1:
            raise QuinticError(f"{run.name} was started more than once: its time is not known")
        seconds = training_seconds(read_records(place / METRICS), attempt.steps(run))
        result = replace(result, train_s=round(seconds, 3), process_s=round(process_s, 3))
    write_result(folder, run, result)
    return result


@contextlib.contextmanager
def _compiled_anew(folder: Path) -> Iterator[Path]:
    """Make an empty folder for compiled code, which is gone at the end: no run of the track finds
    what another has compiled."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _last_words(log: Path) -> str:
    """Return the message with which a process ended, of what it printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    spoken = [re.sub("^quintic: ", "", line) for line in lines if line.startswith("quintic: ")]
    return (spoken or lines or [""])[-1]


def _score(
    attempt: Attempt,
    run: TimedRun,
    folder: Path,
    console: Console,
    stop: GracefulShutdown,
    result: RunResult,
) -> RunResult:
    """Score a run that is trained; its weights are no longer needed then."""

    def on_batch() -> None:
        if stop.requested:
            raise StoppedError

    reference, place = attempt.reference, folder / run.name
    console.line(f"scoring {run.name}")
    scores = bits_per_byte(place, reference.first_bytes, reference.corpus, console, on_batch)
    if all(map(math.isfinite, scores)):
        result = replace(result, bits_per_byte=scores)
    else:
        result = replace(result, diverged="its score is not finite")
    write_result(folder, run, result)
    if run.seed > 1:  # the first of each side stays, to be looked at
        for checkpoint in checkpoints(place / CHECKPOINTS):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return result
