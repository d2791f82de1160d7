"""Records of runs from their folders; from a log, by `quintic.compare.logs`."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from quintic import run_dir
from quintic.checkpoint import STATE, WholeCheckpoint
from quintic.compare.logs import NoLogError, read_logs
from quintic.compare.record import RunRecord, Validation, dataset_identity
from quintic.config import Config, flatten, without_effect
from quintic.continuity import check_same_config
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, STOPPED_EARLY, MetricsRecord, read_records
from quintic.model.build import meta_model
from quintic.run_checkpoints import has_step
from quintic.tasks.score import has_scores

FACTS = ("data", "device", "commit", "python")
"""Facts in `environment.json` that are used here: texts, or null."""


def read_runs(path: Path, *, batch_tokens: int | None = None) -> list[RunRecord]:
    """Return the record of a run folder, or those of a text log of modded-nanogpt or llm.c.

    `batch_tokens` is that of a log that does not say. A run without a validation, such as an
    imported one, will do where it has scores on tasks. Raises `QuinticError` where there is
    neither, with the run of which it is a file, and where a line is damaged.
    """
    if not path.is_file():
        return [read_run(path, scores_suffice=has_scores(path))]
    try:
        return read_logs(path, batch_tokens)
    except NoLogError:
        if (folder := _run_of(path)) is None:
            raise
        raise QuinticError(
            f"{path} is a file of the run in {folder}: name that folder (a pattern that ends in / "
            "takes folders alone)"
        ) from None


def _run_of(file: Path) -> Path | None:
    """Return the folder of the run that a file is in, or stands beside, as in a sweep; None for
    any other file."""
    if file.name in (run_dir.CONFIG, METRICS, run_dir.ENVIRONMENT):
        return file.parent if run_dir.holds_run(file.parent) else None
    beside = file.with_suffix("")
    return beside if file.suffix in (".json", ".log") and run_dir.holds_run(beside) else None


def read_run(path: Path, *, scores_suffice: bool = False) -> RunRecord:
    """Return the record of a run folder; raises `QuinticError` as `read_runs` does, where its
    config is not the one that its checkpoints were trained with and, unless scores suffice, where
    it has no validation."""
    config = run_dir.read_config(path)
    confirmed = _check_config(path, config)
    records = _read_numbers(path / METRICS)
    flops_per_token = _flops_per_token(path, config)
    validations: list[Validation] = []
    elapsed_s, diverged_at = 0.0, None
    for record in records:
        # A validation of older runs has no time of its own; the step before it has.
        elapsed_s = record.get("elapsed_s", elapsed_s)
        step, validated = record["step"], "val_loss" in record
        loss = record["val_loss"] if validated else record.get("train_loss", 0.0)
        if not math.isfinite(loss):
            diverged_at = step if diverged_at is None else diverged_at
        elif validated:
            diverged_at = None
            tokens = record.get("tokens", step * config.train.batch_tokens)
            flops = None if flops_per_token is None else flops_per_token * tokens
            validations.append(Validation(step, tokens, elapsed_s, loss, flops=flops))
    fields = flatten(config)
    if config.is_imported:
        if not scores_suffice:
            raise QuinticError(
                f"{path} was imported from {config.imported.source} and has no losses of a run: "
                f"score it (quintic evaluate {path} --tasks blimp), since scores compare, or name "
                "runs that began with it"
            )
        # The rest of its config are defaults, with which nothing was trained.
        known = {n: v for n, v in fields.items() if n.startswith(("model.", "imported."))}
        return RunRecord(path=path, source="quintic", validations=(), settings=known)
    trained = has_step(path, config.train.steps)
    if not validations and diverged_at is None and not scores_suffice:
        state = "without one" if records else "empty or missing"
        if trained:
            raise QuinticError(
                f"{path} is complete and its losses are lost ({METRICS} is {state}): restore that, "
                "or leave the run out"
            )
        raise QuinticError(
            f"{path} has no validation loss yet ({METRICS} is {state}): train it further with "
            f"--resume {path}, or leave it out"
        )
    starts, damaged = _read_starts(path)
    environment = [{}, *starts][-1]
    timed = [r for r in records if "optimizer_ms" in r and r.get("step_ms")]
    speeds = [record["tokens_per_s"] for record in records if "tokens_per_s" in record]
    stopped_early = [{}, *records][-1].get(STOPPED_EARLY)
    idle = without_effect(Config, fields)  # the learning rate of an optimizer that is not there
    return RunRecord(
        path=path,
        source="quintic",
        validations=tuple(validations),
        data=dataset_identity(config, environment),
        datasets=len({start["data"] for start in starts if start.get("data")}) or 1,
        settings={name: value for name, value in fields.items() if name not in idle},
        steps_planned=config.train.steps,
        confirmed=confirmed,
        trained=trained,
        stopped_at=None if stopped_early is None else records[-1]["step"],
        stopped_early=stopped_early,
        diverged_at=diverged_at,
        # The median, since the first step compiles and others wait for the machine.
        tokens_per_s=statistics.median(speeds) if speeds else None,
        memory_gib=max((r["memory_gib"] for r in records if "memory_gib" in r), default=None),
        optimizer_share=(
            sum(r["optimizer_ms"] for r in timed) / sum(r["step_ms"] for r in timed)
            if timed
            else None
        ),
        # As quintic 0.1 spelled it, whose machine is no other for that.
        device=environment.get("device", "").replace(" 1 threads)", " 1 thread)") or None,
        commit=environment.get("commit"),
        environment_damaged=damaged,
    )


def _read_starts(path: Path) -> tuple[list[dict[str, str]], bool]:
    """Return what is used here of each start in a run's `environment.json`, and whether some of
    that is damaged."""
    starts = run_dir.read_environments(path)
    damaged = (path / run_dir.ENVIRONMENT).exists() and not starts
    found: list[dict[str, str]] = []
    for start in starts:
        known = {name: start[name] for name in FACTS if start.get(name) is not None}
        found.append({name: value for name, value in known.items() if isinstance(value, str)})
        damaged = damaged or len(found[-1]) < len(known)
    return found, damaged


def _flops_per_token(path: Path, config: Config) -> float | None:
    """Return the operations to train on one token, as the run's newest start recorded them or, of a
    run before those were recorded, counted from its config; None where neither says."""
    for start in reversed(run_dir.read_environments(path)):
        recorded = start.get("flops_per_token")
        if isinstance(recorded, int | float) and math.isfinite(recorded) and recorded > 0:
            return float(recorded)
    if config.model.vocab_size is None:
        return None
    return meta_model(config.model).flops_per_token()


def _check_config(path: Path, config: Config) -> bool:
    """Return whether the newest checkpoint was trained with the folder's config; raises
    `QuinticError` where it was trained with another one, since somebody has edited the folder's and
    the losses are of that other one.

    Where no checkpoint is left, or none that can be read, the folder's is believed.
    """
    newest = max(path.glob(f"{run_dir.CHECKPOINTS}/step-*/{STATE}"), default=None)
    if newest is None:
        return False
    try:
        state = json.loads(newest.read_text())
        found = WholeCheckpoint(newest.parent, {**state, "step": int(state["step"])}, [])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    check_same_config(config, found)
    return "config" in found.state


def _read_numbers(path: Path) -> list[MetricsRecord]:
    """Return the records of a run; raises `QuinticError` where a value in them is no number."""
    records = read_records(path)
    for record in records:
        for name, value in record.items():
            if name == STOPPED_EARLY:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise QuinticError(
                    f"{path}: {name} of step {record['step']} is {str(value)[:40]!r} and not a "
                    "number; repair or remove the line"
                )
    return records
