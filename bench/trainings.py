"""Trainings of a bench: each run once in a folder, also where they are stopped in between."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quintic import run_dir
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS
from quintic.sweep.execute import execute
from quintic.sweep.plan import PlannedRun
from quintic.sweep.record import outcome_in

RECORDS = (run_dir.CONFIG, run_dir.ENVIRONMENT, METRICS)
"""What of a run goes into the results."""


class OutOfTimeError(Exception):
    """The time that was given is over."""


def train_all(
    runs: Sequence[PlannedRun],
    folder: Path,
    *,
    jobs: int = 1,
    end: float = math.inf,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> dict[str, float | None]:
    """Train the runs that are not done in `folder`, `jobs` at once, and return all final losses by
    the run's name, in nats per token; None where a run diverged.

    A run that was stopped goes on, and `say` is told in a line of each that ends. Raises
    `QuinticError` where a run fails for another reason than divergence, `OutOfTimeError` where
    something is left to train after `end`, of `time.monotonic`, and `KeyboardInterrupt` where a
    signal stopped it; what was trained is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {run.name: outcome_in(folder / run.name, run) for run in runs}
    if time.monotonic() > end and not all(outcome.final for outcome in outcomes.values()):
        raise OutOfTimeError

    def ended(run: PlannedRun) -> None:
        outcome = outcomes[run.name]
        say(f"{run.name}  {outcome.kind}  {outcome.val_loss or outcome.message or ''}")

    if not execute(runs, folder, outcomes, jobs=jobs, on_change=lambda going: None, on_end=ended):
        raise KeyboardInterrupt
    for name, outcome in outcomes.items():
        if outcome.kind == "failed":
            raise QuinticError(
                f"{name} failed: {outcome.message}: see {folder / name}.log; the same command goes "
                "on from there"
            )
    return {name: outcome.val_loss for name, outcome in outcomes.items()}


def copy_records(run: Path, to: Path) -> None:
    """Copy what of a run goes into the results to the folder `to`."""
    to.mkdir(parents=True, exist_ok=True)
    for name in RECORDS:
        shutil.copyfile(run / name, to / name)


@contextmanager
def ending_in_a_line(bench: str) -> Iterator[None]:
    """Tell in one line, before the command ends with the exit code of its kind, that it was
    stopped, or what a user can mend."""
    try:
        yield
    except QuinticError as error:
        print(f"{bench}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped and saved; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
