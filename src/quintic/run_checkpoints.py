"""The checkpoints of a run: which are there, the newest and the best, which are due, and whether
any that must be there is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

from quintic import run_dir
from quintic.checkpoint import STATE, WholeCheckpoint, folder_name, read_state
from quintic.config import Config
from quintic.errors import QuinticError
from quintic.files import check_name
from quintic.metrics_file import METRICS, STOPPED_EARLY, read_records
from quintic.optim.schedule import steps_before_cooldown


def checkpoints(root: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first, whole or not.

    Raises `QuinticError` where the run's folder has a name under which none can be read, and
    `OSError` where it may not be looked into.
    """
    check_name(root.parent)
    inside = root.iterdir() if root.exists() else ()  # glob finds nothing where it may not look
    return sorted(path for path in inside if path.name.startswith("step-") and path.is_dir())


def newest_whole(root: Path, until: int | None = None) -> WholeCheckpoint | None:
    """Find the newest checkpoint that is whole, of no later step than `until`; None where the run
    has none at all.

    Raises `QuinticError` where there are checkpoints and none of them is whole.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(root)):
        if until is not None and path.name > folder_name(until):
            continue
        try:
            return WholeCheckpoint(path, read_state(path), damaged)
        except QuinticError as error:
            damaged.append(str(error))
    if damaged:
        raise QuinticError(
            f"no checkpoint in {root} is whole: {'; '.join(damaged)}; restore one, or start a new "
            "run with another --out"
        )
    return None


def best_checkpoint(root: Path) -> Path | None:
    """Find the checkpoint with the lowest validation loss measured at its own step."""
    measured = []
    for path in checkpoints(root):
        try:
            loss = json.loads((path / STATE).read_text())["val_loss"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if loss is not None:
            measured.append((loss, path))
    return min(measured)[1] if measured else None


def chosen_checkpoint(root: Path, which: str) -> WholeCheckpoint | None:
    """Find the newest whole checkpoint, or the `best` by validation loss; None where there is none.

    Raises `QuinticError` where there are checkpoints and none of them is whole.
    """
    if which != "best":
        return newest_whole(root)
    if (best := best_checkpoint(root)) is not None:
        return WholeCheckpoint(best, read_state(best), [])
    newest_whole(root)  # raises where there are checkpoints and none of them is whole
    return None


def last_checkpoint(root: Path) -> str:
    """Return the newest checkpoint in words, for messages."""
    found = checkpoints(root)
    return f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"


def due_steps(config: Config) -> list[int]:
    """Return the steps after which a run that is not stopped saves a checkpoint, in order."""
    steps, every = config.train.steps, config.train.checkpoint_every
    before_cooldown = steps_before_cooldown(config) if config.train.keep_before_cooldown else None
    return sorted({*range(every, steps, every), before_cooldown or steps, steps})


def check_none_lost(root: Path, config: Config) -> None:
    """Raise `QuinticError` where a run without a checkpoint in `root` must have had one: beginning
    again would replace a curve whose weights may only be out of reach, as on a disk that is not
    mounted.

    A run that was ended before its first checkpoint was on disk has nothing to lose. That is
    written while training goes on, and complete before the second is begun.
    """
    folder = root.parent
    way_out = f"or begin again with another --out, or once {folder} is removed"
    if root.is_symlink() and not root.exists():
        raise QuinticError(
            f"{root} is a link to {root.readlink()}, which is not there: bring that back, as by "
            f"mounting its disk, {way_out}"
        )
    records = read_records(folder / METRICS)
    validated = [record for record in records if "val_loss" in record]
    ended = bool(validated) and (
        validated[-1]["step"] >= config.train.steps or STOPPED_EARLY in validated[-1]
    )
    first, second, *_ = [*due_steps(config), math.inf]
    trained = max((r["step"] for r in records if "train_loss" in r), default=-1)
    cut_short = any(root.glob(".step-*"))  # by the end of the process that was writing it
    if trained >= (second if root.exists() else first) or (ended and not cut_short):
        done = max(record["step"] for record in records)
        raise QuinticError(
            f"{folder} has no checkpoint any more, and {METRICS} says that it came to step {done}: "
            f"bring {root} back, {way_out}"
        )


def no_checkpoint(folder: Path, config: Config, purpose: str) -> str:
    """Return in words that a run has no checkpoint, with the way out."""
    if config.is_imported:
        return (
            f"{folder} was imported, and no validation has measured its one checkpoint, so there "
            "is no best: leave --checkpoint out, or import it again where that is gone"
        )
    return f"{folder} has no checkpoint {purpose}: train further with --resume {folder}"


def has_step(folder: Path, step: int) -> bool:
    """Return whether a run has the checkpoint of a step."""
    return (folder / run_dir.CHECKPOINTS / folder_name(step)).exists()
