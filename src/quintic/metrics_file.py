"""The file of a run's metrics, `metrics.jsonl`: one object a line, written whole or not at all.

Its fields are listed in docs/metrics.md. JSON has no NaN and no infinity: such a value is written
as null, and `diverged` beside it says which it was,
`{"step": 6, "train_loss": null, "diverged": {"train_loss": "nan"}}`. Whoever reads it here gets the
numbers back, also those of older runs, whose files hold a bare NaN.

Reading needs no PyTorch.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintic.config import Config
from quintic.errors import QuinticError
from quintic.files import replacing

if TYPE_CHECKING:
    import numpy as np

METRICS = "metrics.jsonl"
DIVERGED = "diverged"
"""Field of a record with the values that are not finite, by name, as text."""
STOPPED_EARLY = "stopped_early"
"""Field of the validation with which a run ended before its last step: the reason, in words."""
MetricsRecord = dict[str, Any]


class MetricsFile:
    """The file opened to be appended to; every record is whole in it once `append` returns."""

    def __init__(self, path: Path) -> None:
        # Unbuffered: a buffer cuts what is longer than itself, and writes a cut line on its own.
        self._file = path.open("ab", buffering=0)

    def append(self, record: MetricsRecord) -> None:
        """Append a record in one write; raises `OSError` where the disk takes only a part of it."""
        left = memoryview(_to_line(record))
        while left:
            left = left[self._file.write(left) :]

    def sync(self) -> None:
        """Put what was appended on disk: it survives a power cut after this."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class RunMetrics:
    """The metrics of a run as columns: three tables, each a mapping of the fields' names to NumPy
    arrays of one length, in the order of the run.

    Where a record of a table lacks a field of it, its place holds NaN, or None among texts.
    """

    train: dict[str, np.ndarray]
    """One row for each step whose loss was written: `train_loss`, `lr`, `step_ms`, ..."""
    validation: dict[str, np.ndarray]
    """One row for each validation: `val_loss`, `val_s`, ..."""
    tasks: dict[str, np.ndarray]
    """One row for each time that tasks were scored: `TASK/METRIC`, `tasks_s`, ..."""


def read_metrics(path: Path | str) -> RunMetrics:
    """Return the metrics of a run as columns, by its folder or its `metrics.jsonl`, also while it
    trains.

    Every table has `step` and `tokens`, so that
    `plot(found.validation["tokens"], found.validation["val_loss"])` is the curve. docs/metrics.md
    lists the fields. Raises `QuinticError` where there is no such file or it is another, and as
    `read_records` does.
    """
    file = Path(path) / METRICS if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise QuinticError(f"there is no {file}: name the folder that quintic train wrote")
    kinds: dict[str, list[MetricsRecord]] = {"train_loss": [], "val_loss": [], "tasks_s": []}
    other = f"{file} is no {METRICS} of a run: name that, or the folder that quintic train wrote"
    try:
        records = read_records(file)
    except QuinticError as error:
        with file.open(errors="replace") as lines:
            raise (error if any(map(_is_record, lines)) else QuinticError(other)) from None
    for record in records:
        kind = next((kind for kind in kinds if kind in record), None)
        if kind is not None:
            kinds[kind].append(record)
    if records and not any(kinds.values()):
        raise QuinticError(other)
    return RunMetrics(*map(_columns, kinds.values()))


def _columns(records: list[MetricsRecord]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _column([record.get(name) for record in records]) for name in names}


def _column(values: list[Any]) -> np.ndarray:
    """Return values as integers where all are, as texts where one is, else as float64."""
    import numpy as np  # here, since who only knows the file's name does without

    if any(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    whole = all(isinstance(value, int) for value in values)
    return np.array(values, dtype=np.int64 if whole else np.float64)


def parse_record(line: str | bytes) -> MetricsRecord:
    """Return the record in a line, what is not finite as a float; raises `QuinticError` where there
    is none."""
    try:
        record: MetricsRecord = json.loads(line)
        record["step"] + 0
        record |= {name: float(text) for name, text in record.pop(DIVERGED, {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise QuinticError(f"this is not a record of a run: {line.strip()[:60]!r}") from error
    return record


def _is_record(line: str) -> bool:
    try:
        return bool(parse_record(line))
    except QuinticError:
        return False


def read_records(path: Path) -> list[MetricsRecord]:
    """Return the records of a `metrics.jsonl`, what is not finite as a float; a last line cut short
    by a crash is left out.

    Raises `QuinticError` where another line is not a record.
    """
    records: list[MetricsRecord] = []
    # What is no text at all is no record either, and then said to be none.
    text = path.read_text(errors="replace") if path.exists() else ""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_record(line))
        except QuinticError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise QuinticError(
                f"{path} line {number} is not a record of a run: {line.strip()[:60]!r}; "
                "repair or remove the line"
            ) from error
    return records


def truncate_metrics(path: Path, step: int, *, to: Path | None = None) -> list[MetricsRecord]:
    """Drop the records from `step` on, which a run resumed there will measure again; return those
    before. `to` gets them where the file itself is to stay as it is.

    What is dropped includes a validation at `step` itself, with which the resumed run begins.
    """
    if not path.exists():
        return []
    kept = [record for record in read_records(path) if record["step"] < step]
    with replacing(to or path) as file:
        file.writelines(map(_to_line, kept))
    return kept


def lost_records(path: Path, config: Config, step: int) -> str | None:
    """Return in words for which steps before `step` a run's `metrics.jsonl` has no loss that was
    once written; None where it has them all.

    A run on other data has none before it began there.
    """
    records, anew = read_records(path), config.continued_from.anew
    lost: set[int] = set()
    for name, every in (
        ("train_loss", config.train.log_every),
        ("val_loss", config.train.eval_every),
    ):
        found = {record["step"] for record in records if name in record}
        lost |= {n for n in range(anew, step) if n % every == 0} - found
    if not lost:
        return None
    first, last = min(lost), max(lost)
    if first == last:
        steps = f"step {first}"
    elif len(lost) == last - first + 1:
        steps = f"steps {first} to {last}"
    else:
        steps = f"{len(lost):,} steps from {first} to {last}"
    return f"{path} lacks losses of {steps}: they are lost, and the curve has a hole there"


def _to_line(record: MetricsRecord) -> bytes:
    """Return a record as a line of JSON, with null for what is not finite."""
    lost = {n: str(v) for n, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
    marked = {**record, **dict.fromkeys(lost), DIVERGED: lost} if lost else record
    return json.dumps(marked, allow_nan=False).encode() + b"\n"
