"""Text logs of modded-nanogpt and llm.c as records.

modded-nanogpt (https://github.com/KellerJordan/modded-nanogpt, records/) writes the source of the
program, the machine, then

    step:125/5100 val_loss:4.9493 train_time:20289ms step_avg:176.43ms
    peak memory consumption: 34239 MiB

Its clock leaves out validation and, until January 2025, the first ten steps, where `step_avg` is
`nan`. Its Track 3 (records/track_3_optimization) writes seconds, some of its programs further
fields, and some train several times, trial after trial, in one log:

    step:3350/3350 val_loss:3.27874 val_ema_loss:3.27871 train_time:496.855s step_avg:146.79ms

llm.c (https://github.com/karpathy/llm.c, llmc/logger.h and train_gpt2.py) writes `main.log`
with neither times nor batch size:

    s:9536 tel:3.275959
    s:0 trl:11.0091 lr:0.000001 norm:15.37
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from quintic.compare.record import RunRecord, Validation
from quintic.errors import QuinticError

LARGEST_LOG_BYTES = 1 << 28

_MODDED = re.compile(
    r"step:(?P<step>\d+)/(?P<planned>\d+) (?P<kind>val|train)_loss:(?P<loss>\S+)(?: \w+:\S+)*? "
    r"train_time:(?P<time>\d+(?:\.\d+)?)(?P<unit>m?s) step_avg:(?P<average>\S+)ms"
)
_LLMC = re.compile(r"s:(?P<step>\d+) (?P<kind>tel|trl):(?P<loss>\S+)")
_MEMORY = re.compile(r"peak memory (?:consumption|allocated): (\d+) MiB")
_BATCHES = tuple(
    tuple(re.compile(rf"^ *{pattern}", re.M) for pattern in patterns)
    for patterns in (
        (  # 2024
            r"batch_size *: *int *= *([\d*]+) *#.*in sequences, across all devices",
            r"sequence_length *: *int *= *([\d*]+) *#.*in tokens",
        ),
        # 2025, and Track 3: in tokens
        (r"(?:train_)?batch_size *(?:: *int *)?= *([\d *]+?) *(?:#.*in tokens.*)?$",),
        (r"assert world_size == (\d+)", r"(?:train_)?seq_len *= *([\d *]+?) *#"),  # early 2025
    )
)
"""Ways in which a program says its batch: patterns whose numbers, multiplied, are the tokens."""
_RULE = re.compile(r"^={20,}$", re.M)


@dataclass
class _Trial:
    """The lines of one training in a log."""

    source: Literal["modded-nanogpt", "llm.c"]
    planned: int | None = None
    losses: dict[tuple[int, str], float] = field(default_factory=dict)
    """Loss by step and kind, val or train."""
    seconds: dict[int, float] = field(default_factory=dict)
    average_ms: float = math.nan
    memory_gib: float | None = None
    newest: int = 0


class NoLogError(QuinticError):
    """A file that no trainer known here has written."""


def read_logs(path: Path, batch_tokens: int | None = None) -> list[RunRecord]:
    """Return the record of a log, or one for each trial in it, with #1, #2, ... after the name.

    `batch_tokens` is used where the log does not tell its own. Where a crashed run went back and
    logged steps again, the later lines count. Raises `QuinticError` where the file is no such log
    or a loss in it cannot be read.
    """
    if path.stat().st_size > LARGEST_LOG_BYTES:
        raise QuinticError(
            f"{path} has {path.stat().st_size:,} bytes, more than any log: name a run folder or "
            "the text log of modded-nanogpt or llm.c"
        )
    text = path.read_text(errors="replace")  # a line that was garbled is no line of a loss
    lines = text.splitlines()
    trials = list(_trials(path, lines))
    if not trials:
        raise NoLogError(
            f"{path} is neither the folder of a run nor a log of modded-nanogpt or llm.c: no line "
            "reads like `step:125/5100 val_loss:4.9493 train_time:20289ms step_avg:176.43ms` or "
            "`s:9536 tel:3.275959`"
        )
    began = next(n for n, line in enumerate(lines) if _MODDED.match(line) or _LLMC.match(line))
    program = _program("\n".join(lines[:began]))
    own_tokens = _batch_tokens(program)
    tokens = own_tokens or batch_tokens
    # Trials of one log are of one program, also where the log does not hold it.
    identity = program or (str(path.resolve()) if len(trials) > 1 else "")
    sha256 = hashlib.sha256(identity.encode()).hexdigest() if identity else None
    paths = [path.with_name(f"{path.name}#{number}") for number in range(1, len(trials) + 1)]
    return [
        replace(_record(one, trial, sha256, tokens), batch_given=tokens != own_tokens)
        for one, trial in zip(paths if len(trials) > 1 else [path], trials, strict=True)
    ]


def _trials(path: Path, lines: list[str]) -> Iterator[_Trial]:
    """Yield the trials of a log; raises `QuinticError` where a number in it cannot be read."""
    trial: _Trial | None = None
    for number, line in enumerate(lines):
        if trial is not None and (found := _MEMORY.match(line)):
            trial.memory_gib = int(found[1]) / 1024
        modded = _MODDED.match(line)
        found = modded or _LLMC.match(line)
        if not found:
            continue
        step, loss = int(found["step"]), _float(path, number, found["loss"])
        if trial is None:
            trial = _Trial("modded-nanogpt" if modded else "llm.c")
        elif step < trial.newest:
            # A program of modded-nanogpt begins a log of its own wherever it begins.
            ended = trial.planned is not None and trial.newest >= trial.planned
            if modded and (step == 0 or ended):
                yield trial
                trial = _Trial("modded-nanogpt")
            trial.losses = {key: loss for key, loss in trial.losses.items() if key[0] <= step}
        if modded:
            trial.source, trial.planned = "modded-nanogpt", int(modded["planned"])
            trial.average_ms = _float(path, number, modded["average"])
            seconds = float(modded["time"]) / (1 if modded["unit"] == "s" else 1000)
            trial.seconds[step] = 0.0 if math.isnan(trial.average_ms) else seconds
        kind = "val" if found["kind"] in ("val", "tel") else "train"
        trial.losses[step, kind], trial.newest = loss, step
    if trial is not None:
        yield trial


def _record(path: Path, trial: _Trial, program_sha256: str | None, tokens: int | None) -> RunRecord:
    """Return the record of a trial; raises `QuinticError` where it has no validation yet."""
    validations = tuple(
        Validation(
            steps=step,
            tokens=None if tokens is None else step * tokens,
            seconds=trial.seconds.get(step),
            loss=loss,
        )
        for (step, kind), loss in trial.losses.items()
        if kind == "val" and math.isfinite(loss)
    )
    last = validations[-1].steps if validations else -1
    lost = [step for (step, _), loss in trial.losses.items() if not math.isfinite(loss)]
    diverged_at = next((step for step in lost if step >= last), None)
    if not validations and diverged_at is None:
        raise QuinticError(f"{path} has no validation loss yet: leave it out")
    speed = 1000 * tokens / trial.average_ms if tokens and trial.average_ms > 0 else None
    return RunRecord(
        path=path,
        source=trial.source,
        validations=validations,
        program_sha256=program_sha256,
        steps_planned=trial.planned,
        diverged_at=diverged_at,
        gaps=tuple(dict.fromkeys(step for step in lost if step < last)),
        tokens_per_s=speed,
        memory_gib=trial.memory_gib,
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
    """Return the tokens of a step from the source of a program; None where it does not say them in
    a way that is known here, as since November 2025, when the batch began to grow as it goes."""
    for patterns in _BATCHES:
        found = [pattern.search(program) for pattern in patterns]
        factors = [int(factor) for f in found if f for factor in f[1].split("*") if factor.strip()]
        if all(found):
            return math.prod(factors)
    return None
