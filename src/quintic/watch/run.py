"""One run that is looked at: what it is, how far it has come, and in what state it is."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any, Literal

from quintic import run_dir
from quintic.compare.record import DatasetIdentity, RunRecord, dataset_identity
from quintic.config import Config, flatten, without_effect
from quintic.diagnostics.record import DIAGNOSTICS
from quintic.errors import QuinticError, counted
from quintic.metrics_file import METRICS, STOPPED_EARLY
from quintic.tasks.curves import STDERR, chance_field, is_metric
from quintic.watch.held_locks import FileId, is_held
from quintic.watch.metrics_tail import MetricsTail

State = Literal["running", "finished", "stopped", "crashed", "diverged", "gone"]

PATIENCE_S = 60.0
"""How long a run may write nothing, at least, before it counts as ended, where no lock says that it
is alive."""
RECENT = 50
"""Steps over which throughput is taken."""
TAIL_BYTES = 1 << 18
"""Of the end of a file of samples."""


class WatchedRun:
    """A run in a folder, whoever trains it, and on whatever machine."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.id = hashlib.sha256(str(folder.absolute()).encode(errors="replace")).hexdigest()[:8]
        """Stands for the folder wherever the page speaks of it."""
        self.metrics = MetricsTail(folder / METRICS)
        self.record = RunRecord(folder, "quintic", ())
        self.steps: int | None = None
        self.problem: str | None = None
        """Why the config cannot be read, in words."""
        self.flops_per_token: float | None = None
        self.summary: dict[str, Any] = {}
        """What the page's table says of it."""
        self.version = 0
        """The watcher's count when the summary last changed."""
        self._was_held = False
        self._grew_at = 0.0
        self._read_at: tuple[float, ...] = ()

    def look(self, held: frozenset[FileId]) -> bool:
        """Read on, a block at most, and return whether what is to be said has changed."""
        known = self.metrics.whole
        grew = self.metrics.advance()
        if grew and known:
            self._grew_at = time.time()
        self._read_facts()
        before, self.summary = self.summary, self._summarize(held)
        return grew or before != self.summary

    def _read_facts(self) -> None:
        """Read config and environment where they have changed."""
        paths = (self.folder / run_dir.CONFIG, self.folder / run_dir.ENVIRONMENT)
        read_at = tuple(_modified(path) for path in paths)
        if read_at == self._read_at or not read_at[0]:
            return
        self._read_at = read_at
        environment = [{}, *run_dir.read_environments(self.folder)][-1]
        flops = environment.get("flops_per_token")
        self.flops_per_token = flops if isinstance(flops, int | float) else None
        settings: dict[str, Any] = {}
        data = DatasetIdentity()
        try:
            config = run_dir.read_config(self.folder)
        except (QuinticError, OSError) as error:
            self.problem, self.steps = str(error), _planned_steps(paths[0])
        else:
            self.problem, self.steps = None, config.train.steps
            fields = flatten(config)
            idle = without_effect(Config, fields)
            settings = {name: value for name, value in fields.items() if name not in idle}
            data = dataset_identity(config, environment)
        self.record = RunRecord(self.folder, "quintic", (), data=data, settings=settings)

    def _summarize(self, held: frozenset[FileId]) -> dict[str, Any]:
        metrics, state = self.metrics, self._state(held)
        speeds = metrics.recent("tokens_per_s", RECENT)
        return {
            "id": self.id,
            "name": self.name,
            "state": state,
            "step": metrics.number("step"),
            "steps": self.steps,
            "tokens": metrics.number("tokens"),
            "train_loss": metrics.number("train_loss"),
            "val_loss": metrics.number("val_loss"),
            "tokens_per_s": statistics.median(speeds) if speeds else None,
            "left_s": self._left_s() if state == "running" else None,
            "written_at": round(self._written_at()) or None,
            "seed": self.record.seed,
            "fields": metrics.fields,
            "flops": self.flops_per_token is not None,
            "whole": metrics.whole,
            "diagnostics": _size(self.folder / DIAGNOSTICS),
            "problem": self._problem(),
        }

    def _problem(self) -> str | None:
        bad = self.metrics.bad_lines
        lines = f"{METRICS} has {counted(bad, 'line')} left out, no record" if bad else None
        return "; ".join(filter(None, (self.problem, lines))) or None

    def _state(self, held: frozenset[FileId]) -> State:
        """Return the state; a lock that is held says that a run is alive, and one that was held and
        is not that it has ended. Of a run on another machine no lock is seen: there, as where it
        has never been, a record not long ago says that it is alive."""
        last = self.metrics.last
        step = last.get("step", -1)
        if not self.folder.is_dir():
            return "gone"
        validated = self.metrics.column("val_loss", "step")[0]
        at_end = self.steps is not None and step >= self.steps
        if len(validated) and validated[-1] == step and (at_end or STOPPED_EARLY in last):
            return "finished"
        is_held_now = is_held(self.folder / run_dir.LOCK, held)
        was_held, self._was_held = self._was_held, is_held_now or self._was_held
        if is_held_now:
            return "running"
        losses = [name for name in ("train_loss", "val_loss") if name in last]
        if any(self.metrics.number(loss) is None for loss in losses):
            return "diverged"
        if not was_held and time.time() - self._written_at() < self._patience_s():
            return "running"
        return "stopped" if self._saved_step() > step else "crashed"

    def _written_at(self) -> float:
        """Return when a record was written last, by the clock of whoever wrote it or, where that is
        behind, by ours."""
        return max(self._grew_at, _modified(self.metrics.path))

    def _patience_s(self) -> float:
        """Return how long it may write nothing: a validation, scores, or many steps."""
        step_s = (self.metrics.number("step_ms") or 0) / 1000
        pauses_s = [self.metrics.number(name) or 0 for name in ("val_s", "tasks_s")]
        return max(PATIENCE_S, 20 * step_s, 3 * max(pauses_s))

    def _saved_step(self) -> int:
        """Return the step of the newest checkpoint, so many steps being kept; -1 where none is."""
        names = (path.name for path in (self.folder / run_dir.CHECKPOINTS).glob("step-*"))
        steps = (name.removeprefix("step-") for name in names)
        return max((int(step) for step in steps if step.isdigit()), default=-1)

    def _left_s(self) -> float | None:
        """Return the seconds to the end, at the pace of the last steps and with the validations and
        scores between; None where that is not known."""
        step_ms = self.metrics.recent("step_ms", RECENT)
        if self.steps is None or not step_ms:
            return None
        left = max(0, self.steps - round(self.metrics.number("step") or 0))
        pauses_s = 0.0
        for seconds, setting in (("val_s", "eval_every"), ("tasks_s", "eval_tasks_every")):
            if every := self.record.settings.get(f"train.{setting}"):
                pauses_s += (self.metrics.number(seconds) or 0) * (left // every)
        return round(left * statistics.median(step_ms) / 1000 + pauses_s)

    def details(self) -> dict[str, Any]:
        """Return what the page shows of one run alone: how it was started, on what, how it scored,
        and what the model wrote last."""
        environment = [{}, *run_dir.read_environments(self.folder)][-1]
        shown = ("command", "device", "quintic", "torch", "commit", "date", "processes")
        return {
            "folder": str(self.folder),
            "started": {n: str(environment[n]) for n in shown if environment.get(n) is not None},
            "scores": self._last_scores(),
            "sample": _last_sample(self.folder / run_dir.SAMPLES),
        }

    def _last_scores(self) -> list[dict[str, Any]]:
        """Return the newest value of each metric of a task, with its standard error, the accuracy
        of guessing, and the step; None for what is not known."""
        found = []
        for field in filter(is_metric, self.metrics.fields):
            chance, steps = chance_field(field), self.metrics.column(field, "step")[0]
            if not len(steps):  # a resume has just cut the file
                continue
            found.append(
                {
                    "name": field.replace("/", " "),
                    "value": self.metrics.number(field),
                    "stderr": self.metrics.number(field + STDERR),
                    "chance": chance and self.metrics.number(chance),
                    "step": int(steps[-1]),
                }
            )
        return found


def _planned_steps(config: Path) -> int | None:
    """Return the steps that a config of another version plans; None where it does not say."""
    try:
        steps = json.loads(config.read_bytes())["train"]["steps"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return steps if isinstance(steps, int) else None


def _last_sample(path: Path) -> dict[str, Any] | None:
    """Return the last whole record of a file of samples; None where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
            return {name: record[name] for name in ("step", "text")} | {
                "prompt": record.get("prompt")
            }
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # half written, or junk
    return None


def _size(path: Path) -> int:
    """Return the bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
