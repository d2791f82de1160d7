"""The record of a sweep, sweep.json: what was asked, and what became of every run.

The folder of a sweep:

sweep.json   this record, replaced whole whenever a run ends
sweep.png    final loss against each varied value
best.json    the config of the best combination: quintic train DIR/best.json
NAME/        the folder of a run, as quintic train writes it
NAME.json    the config it was started with
NAME.log     what it printed
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from quintic import run_dir
from quintic.checkpoint import folder_name
from quintic.compare.runs import read_run
from quintic.config import Config, differing_fields
from quintic.errors import QuinticError
from quintic.files import write_json
from quintic.metrics_file import METRICS
from quintic.run_lines import no_better_than_guessing
from quintic.sweep.plan import Plan, PlannedRun

TAIL_BYTES = 4096
"""Bytes at the end of metrics.jsonl, with its last line in them."""

RECORD, FIGURE, BEST = "sweep.json", "sweep.png", "best.json"


@dataclass(frozen=True)
class Outcome:
    """The end of a run, as far as it came."""

    kind: Literal["finished", "diverged", "failed", "unfinished"] = "unfinished"
    val_loss: float | None = None
    """Validation loss at the end, in nats per token, of a finished run."""
    message: str | None = None
    """Why it diverged or failed, or that it finished and has learned nothing, in one line."""

    @property
    def final(self) -> bool:
        """Return whether running it again would bring nothing new. What failed is tried again."""
        return self.kind in ("finished", "diverged")

    @property
    def learned_nothing(self) -> str | None:
        """Return in words that a finished run predicts no better than by guessing; None where it
        does, and where it has not finished."""
        return self.message if self.kind == "finished" else None


Outcomes = dict[str, Outcome]
"""Outcome by the name of the run; each run of the plan has one."""


def outcome_in(folder: Path, run: PlannedRun) -> Outcome:
    """Return what the folder of a run says became of it, whoever trained it."""
    try:
        record = read_run(folder)
    except QuinticError:
        return Outcome()  # without a validation yet, or damaged: training says so itself
    if record.diverged_at is not None:
        return Outcome("diverged", message=f"the loss is not finite at step {record.diverged_at}")
    # A run that was killed after its last validation still has to save its last state.
    last_step = run.config.train.steps if record.stopped_at is None else record.stopped_at
    whole = (folder / run_dir.CHECKPOINTS / folder_name(last_step)).is_dir()
    if record.final_loss is None or not whole:
        return Outcome()
    vocab_size = record.settings["model.vocab_size"]
    return Outcome(
        "finished", record.final_loss, no_better_than_guessing(record.final_loss, vocab_size)
    )


def read_outcomes(folder: Path, plan: Plan) -> Outcomes:
    """Return what became of every run of a plan in a folder that may hold a part of it.

    A sweep may grow: the same recipe with more values, seeds or draws is the same sweep. Raises
    `QuinticError` where the folder holds anything else.
    """
    if not folder.exists():
        return {run.name: Outcome() for run in plan.runs}
    if not folder.is_dir():
        raise QuinticError(f"--out {folder} is not a folder: choose another")
    recorded: Outcomes = {}
    if (folder / RECORD).exists():
        recorded = _read_same(folder, plan)
    elif any(path.name != ".lock" for path in folder.iterdir()):
        raise QuinticError(f"--out {folder} is not empty and holds no sweep: choose another")
    found = {}
    for run in plan.runs:
        before = recorded.get(run.name, Outcome())
        if not run_dir.holds_run(folder / run.name):
            before = Outcome()
        found[run.name] = before if before.final else outcome_in(folder / run.name, run)
    return found


def _read_same(folder: Path, plan: Plan) -> Outcomes:
    """Return the recorded outcomes; raises `QuinticError` where they are another sweep's."""
    path = folder / RECORD
    choose = "choose another --out"
    try:
        record = json.loads(path.read_text())
        base = Config.from_dict(record["base"])
        fields = [one["field"] for one in record["varied"]]
        outcomes = {
            run["name"]: Outcome(run["outcome"], run["val_loss"], run["message"])
            for run in record["runs"]
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise QuinticError(f"{path} is not the record of a sweep: {choose}") from error
    if fields != plan.fields:
        raise QuinticError(
            f"{folder} holds another sweep, which varies {', '.join(fields)}: {choose}"
        )
    if changed := set(differing_fields(base, plan.base)) - {*fields}:
        raise QuinticError(
            f"{folder} holds another sweep, with another {', '.join(sorted(changed))}: {choose}"
        )
    if missing := outcomes.keys() - {run.name for run in plan.runs}:
        raise QuinticError(
            f"{folder} holds another sweep, with {min(missing)}, which this one lacks: {choose}, "
            "or vary at least all that it varies"
        )
    return outcomes


def write_record(
    folder: Path, plan: Plan, outcomes: Mapping[str, Outcome], best: Any = None
) -> None:
    """Replace sweep.json; `best` is what the summary says of the best combination."""
    record: dict[str, Any] = {
        "base": plan.base.to_dict(),
        "varied": [asdict(one) for one in plan.varied],
        "random": plan.draws,
        "seeds": plan.seeds,
        "best": best,
        "runs": [],
    }
    for run in plan.runs:
        found = asdict(outcomes[run.name])
        own = {"name": run.name, "values": dict(run.values), "seed": run.seed}
        record["runs"].append({**own, "outcome": found.pop("kind"), **found})
    write_json(folder / RECORD, record)


def steps_done(folder: Path) -> int:
    """Return the steps of a run that goes on, from the end of its metrics; 0 where it has none."""
    try:
        with (folder / METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0  # the last line is being written: the next look sees it
