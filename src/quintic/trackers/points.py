"""The points of a run, as they come into its files: what each step has, in the order of steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from quintic.metrics_file import METRICS, parse_record
from quintic.run_dir import SAMPLES


@dataclass
class Point:
    """Everything that a run has written of a step."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
    """By the names in `metrics.jsonl`; `tokens` and other whole numbers are of type int."""
    texts: dict[str, str] = field(default_factory=dict)


class Lines:
    """The lines that have been appended to a file since the last time it was asked for them."""

    def __init__(self, path: Path) -> None:
        self._path, self._rest = path, b""
        self._file: BinaryIO | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Yield whole lines; one that is still being written comes with the next call."""
        if self._file is None and self._path.exists():
            self._file = self._path.open("rb")
        if self._file is not None:
            *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
            yield from lines


class Points:
    """Follows the files of a run that may still be written.

    A step's records come one after another, so a step is whole when the next one's begin.
    """

    def __init__(self, folder: Path) -> None:
        self._metrics, self._samples = Lines(folder / METRICS), Lines(folder / SAMPLES)
        self._open: dict[int, Point] = {}

    def read(self, *, last: bool) -> list[Point]:
        """Return the points that have become whole since the last call, and the newest too where
        the run writes no more."""
        for line in self._metrics:
            record = parse_record(line)
            point = self._at(record.pop("step"))
            for name, value in record.items():
                kind = point.texts if isinstance(value, str) else point.values
                kind[name] = value
        for line in self._samples:
            sample = json.loads(line)
            self._at(sample["step"]).texts["sample"] = f"{sample['prompt']}|{sample['text']}"
        steps = sorted(self._open)
        return [self._open.pop(step) for step in (steps if last else steps[:-1])]

    def _at(self, step: int) -> Point:
        return self._open.setdefault(step, Point(step))
