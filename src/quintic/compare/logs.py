"""Text logs of modded-nanogpt and llm.c as records.

modded-nanogpt (https://github.com/KellerJordan/modded-nanogpt, records/) writes the source of the
program, the machine, then

    step:125/5100 val_loss:4.9493 train_time:20289ms step_avg:176.43ms
    peak memory consumption: 34239 MiB

Its clock leaves out validation and, until January 2025, the first ten steps, where `step_avg` is
`nan`. llm.c (https://github.com/karpathy/llm.c, llmc/logger.h and train_gpt2.py) writes `main.log`
with neither times nor batch size:

    s:9536 tel:3.275959
    s:0 trl:11.0091 lr:0.000001 norm:15.37
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Literal

from quintic.compare.record import RunRecord, Validation
from quintic.errors import QuinticError

LARGEST_LOG_BYTES = 1 << 28

_MODDED = re.compile(
    r"step:(\d+)/(\d+) (?P<kind>val|train)_loss:(\S+) train_time:(\d+)ms step_avg:(\S+)ms"
)
_LLMC = re.compile(r"s:(\d+) (?P<kind>tel|trl):(\S+)")
_MEMORY = re.compile(r"peak memory (?:consumption|allocated): (\d+) MiB")
_HYPERPARAMETERS = (
    re.compile(r"^ *batch_size *: *int *= *([\d*]+) *#.*in sequences, across all devices", re.M),
    re.compile(r"^ *sequence_length *: *int *= *([\d*]+) *#.*in tokens", re.M),
)
_RULE = re.compile(r"^={20,}$", re.M)


def read_log(path: Path, batch_tokens: int | None = None) -> RunRecord:
    """Return the record of a log; `batch_tokens` is used where the log does not tell its own.

    Where a crashed run went back and logged steps again, the later lines count. Raises
    `QuinticError` where the file is no such log or a loss in it cannot be read.
    """
    if path.stat().st_size > LARGEST_LOG_BYTES:
        raise QuinticError(
            f"{path} has {path.stat().st_size:,} bytes, more than any log: name a run folder or "
            "the text log of modded-nanogpt or llm.c"
        )
    text = path.read_text(errors="replace")  # a line that was garbled is no line of a loss
    lines = text.splitlines()
    source: Literal["modded-nanogpt", "llm.c"] | None = None
    losses: dict[tuple[int, str], float] = {}
    seconds: dict[int, float] = {}
    planned, average_ms, memory_gib, began, newest = None, math.nan, None, len(lines), 0
    for number, line in enumerate(lines):
        if found := _MODDED.match(line):
            source, step, planned = "modded-nanogpt", int(found[1]), int(found[2])
            loss, average_ms = _float(path, number, found[4]), _float(path, number, found[6])
            seconds[step] = 0.0 if math.isnan(average_ms) else int(found[5]) / 1000
        elif found := _LLMC.match(line):
            source, step, loss = "llm.c", int(found[1]), _float(path, number, found[3])
        elif found := _MEMORY.match(line):
            memory_gib = int(found[1]) / 1024
            continue
        else:
            continue
        began = min(began, number)
        kind = "val" if found["kind"] in ("val", "tel") else "train"
        if step < newest:
            losses = {key: value for key, value in losses.items() if key[0] <= step}
        losses[step, kind], newest = loss, step
    if source is None:
        raise QuinticError(
            f"{path} is neither the folder of a run nor a log of modded-nanogpt or llm.c: no line "
            "reads like `step:125/5100 val_loss:4.9493 train_time:20289ms step_avg:176.43ms` or "
            "`s:9536 tel:3.275959`"
        )
    program = _program("\n".join(lines[:began]))
    tokens = _batch_tokens(program) or batch_tokens
    validations = tuple(
        Validation(
            steps=step,
            tokens=None if tokens is None else step * tokens,
            seconds=seconds.get(step),
            loss=loss,
        )
        for (step, kind), loss in losses.items()
        if kind == "val" and math.isfinite(loss)
    )
    last = validations[-1].steps if validations else -1
    lost = [step for (step, _), loss in losses.items() if step >= last and not math.isfinite(loss)]
    diverged_at = lost[0] if lost else None
    if not validations and diverged_at is None:
        raise QuinticError(f"{path} has no validation loss yet: leave it out")
    timed = source == "modded-nanogpt" and average_ms > 0
    return RunRecord(
        path=path,
        source=source,
        validations=validations,
        program_sha256=hashlib.sha256(program.encode()).hexdigest() if program else None,
        steps_planned=planned,
        diverged_at=diverged_at,
        tokens_per_s=1000 * tokens / average_ms if timed and tokens is not None else None,
        memory_gib=memory_gib,
    )


def _float(path: Path, number: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise QuinticError(
            f"{path} line {number + 1}: {text[:40]!r} is not a number; repair or remove the line"
        ) from None


def _program(opening: str) -> str:
    """Return the source code among the parts of a log's opening, which lines of = divide; empty:
    there is none."""
    parts = _RULE.split(opening)
    return next((part for part in parts if re.search("^import ", part, re.M)), "")


def _batch_tokens(program: str) -> int | None:
    """Return the tokens of a step from the hyperparameters of a program of 2024; later ones change
    the batch as they go."""
    found = [pattern.search(program) for pattern in _HYPERPARAMETERS]
    factors = [int(factor) for f in found if f for factor in f[1].split("*") if factor]
    return math.prod(factors) if all(found) else None
