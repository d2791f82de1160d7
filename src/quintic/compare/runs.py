"""Records of runs from their folders; from a log, by `quintic.compare.logs`."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from pathlib import Path
from typing import Any

from quintic import run_dir
from quintic.compare.logs import read_log
from quintic.compare.record import DatasetIdentity, RunRecord, Validation
from quintic.config import EMBEDDED, Config, flatten, without_effect
from quintic.errors import QuinticError
from quintic.metrics import METRICS, MetricsRecord, read_metrics


def read_run(path: Path, *, batch_tokens: int | None = None) -> RunRecord:
    """Return the record of a run folder, or of a text log of modded-nanogpt or llm.c.

    `batch_tokens` is that of a log that does not say. Raises `QuinticError` where there is neither,
    where a line is damaged and where there is no validation yet.
    """
    if path.is_file():
        return read_log(path, batch_tokens)
    return _read_folder(path)


def _read_folder(folder: Path) -> RunRecord:
    config = run_dir.read_config(folder)
    path = folder / METRICS
    records = read_metrics(path)
    validations: list[Validation] = []
    elapsed_s, diverged_at = 0.0, None
    for record in records:
        # A validation of older runs has no time of its own; the step before it has.
        if (seconds := _number(path, record, "elapsed_s")) is not None:
            elapsed_s = seconds
        _number(path, record, "tokens")
        for name in ("train_loss", "val_loss"):
            loss = _number(path, record, name)
            if loss is None:
                continue
            if not math.isfinite(loss):
                diverged_at = record["step"] if diverged_at is None else diverged_at
            elif name == "val_loss":
                diverged_at = None
                tokens = record.get("tokens", record["step"] * config.train.batch_tokens)
                validations.append(Validation(record["step"], tokens, elapsed_s, loss))
    if not validations and diverged_at is None:
        raise QuinticError(
            f"{folder} has no validation loss yet ({METRICS} is "
            f"{'without one' if records else 'empty or missing'}): train it further with "
            f"--resume {folder}, or leave it out"
        )
    environment = _environment(folder)
    speeds = _numbers(path, records, "tokens_per_s")
    fields = flatten(config)
    idle = without_effect(Config, fields)  # the learning rate of an optimizer that is not there
    return RunRecord(
        path=folder,
        source="quintic",
        validations=tuple(validations),
        data=_identity(config, environment),
        settings={name: value for name, value in fields.items() if name not in idle},
        steps_planned=config.train.steps,
        diverged_at=diverged_at,
        # The median, since the first step compiles and others wait for the machine.
        tokens_per_s=statistics.median(speeds) if speeds else None,
        memory_gib=max(_numbers(path, records, "memory_gib"), default=None),
        optimizer_share=_optimizer_share(path, records),
        device=environment.get("device"),
        commit=environment.get("commit"),
    )


def _number(path: Path, record: MetricsRecord, name: str) -> float | None:
    value = record.get(name)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise QuinticError(
        f"{path}: {name} of step {record['step']} is {str(value)[:40]!r} and not a number; repair "
        "or remove the line"
    )


def _numbers(path: Path, records: list[MetricsRecord], name: str) -> list[float]:
    return [v for record in records if (v := _number(path, record, name)) is not None]


def _optimizer_share(path: Path, records: list[MetricsRecord]) -> float | None:
    pairs = [(_number(path, r, "optimizer_ms"), _number(path, r, "step_ms")) for r in records]
    known = [(part, whole) for part, whole in pairs if part is not None and whole]
    return sum(part for part, _ in known) / sum(whole for _, whole in known) if known else None


def _environment(folder: Path) -> dict[str, Any]:
    """Return the newest entry of `environment.json`; what it lacks is merely not shown."""
    with contextlib.suppress(OSError, ValueError):
        starts = json.loads((folder / run_dir.ENVIRONMENT).read_text())
        if isinstance(starts, list) and starts and isinstance(starts[-1], dict):
            return starts[-1]
    return {}


def _identity(config: Config, environment: dict[str, Any]) -> DatasetIdentity:
    tokenizer = config.data.tokenizer or "its own tokenizer"
    vocabulary = f"vocabulary {config.model.vocab_size}"
    if config.data.path == EMBEDDED:
        # Its text is that of the interpreter.
        python = f"Python {environment.get('python', 'unknown')}"
        described = (EMBEDDED, python, f"vocabulary {config.data.embedded_vocab}")
    else:
        described = (str(Path(config.data.path).absolute()), tokenizer, vocabulary)
    return DatasetIdentity(environment.get("data"), described, config.train.eval_tokens)
