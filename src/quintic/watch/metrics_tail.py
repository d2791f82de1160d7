"""The records of a run while it writes them: `metrics.jsonl`, read on from where it was read to.

A resumed run replaces the file by a shorter one, and any other program may do anything to it, so
before reading on it is checked that the file still has what was read last; where it has not, it is
read anew. A line that is no record is counted and left out; one without its end waits for it.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quintic.metrics_file import DIVERGED, MetricsRecord

try:
    import orjson

    _loads: Any = orjson.loads
except ImportError:  # it comes with the extra `data`, and is faster
    _loads = json.loads

PLACES = ("step", "tokens", "elapsed_s")
"""Fields that say where a record stands, which float32 would round."""
BLOCK_BYTES = 2_000_000
KNOWN_BYTES = 64
"""Bytes before the place read to that must still be there."""
OVERVIEW_BYTES, OVERVIEW_RECORDS = 500_000, 400
OVERVIEW_BLOCK_BYTES = 1 << 18
"""Small enough for the processor's cache, where it is looked through."""
VALIDATION = b'"val_loss"'


class MetricsTail:
    """What is known of a file so far, as columns; `advance` reads on. Safe to use from several
    threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._tables: _Tables = {}
        self._overview: _Tables | None = None
        """Some records of a long file, until all of it has been read."""
        self._offset, self._known, self._file = 0, b"", (0, 0)
        self._elapsed_s = 0.0
        self.last: dict[str, Any] = {}
        """The newest value of each field, whatever it is; those that are no number are NaN where
        training diverged, and text."""
        self.bad_lines = 0
        self.whole = False
        """True where all of the file has been read."""

    def advance(self) -> bool:
        """Read at most a block further; return whether anything has changed. What was read of a
        file that is gone stays."""
        with self._guard:
            try:
                stat = self.path.stat()
                file = (stat.st_dev, stat.st_ino)
                if (self._file, self._offset) == (file, stat.st_size):
                    changed, self.whole = not self.whole, True
                    return changed
                with self.path.open("rb") as opened:
                    return self._read(opened, file, stat.st_size)
            except OSError:
                changed, self.whole = not self.whole, True
                return changed

    def _read(self, opened: BinaryIO, file: tuple[int, int], size: int) -> bool:
        opened.seek(self._offset - len(self._known))
        same = opened.read(len(self._known)) == self._known
        if (self._file != file and self._offset) or size < self._offset or not same:
            self._forget()
            opened.seek(0)
        self._file = file
        if not self._offset and self._overview is None and size > OVERVIEW_BYTES:
            self._overview = {}
            self._take(_some_lines(opened, size // OVERVIEW_RECORDS), self._overview)
            self.bad_lines = 0  # which all of it will be counted for
            return True
        block = opened.read(BLOCK_BYTES)
        end = block.rfind(b"\n") + 1
        if not end:
            # Half a line: the rest comes. No record is as long as a block.
            if len(block) == BLOCK_BYTES:
                self._offset, self.bad_lines = self._offset + len(block), self.bad_lines + 1
                self._known = block[-KNOWN_BYTES:]
                return True
            changed, self.whole = not self.whole, True
            return changed
        self._take(block[:end], self._tables)
        self._offset += end
        self._known = block[max(0, end - KNOWN_BYTES) : end]
        self.whole = self._offset + len(block) - end >= size
        if self.whole:
            self._overview = None
        return True

    def _take(self, block: bytes, tables: _Tables) -> None:
        """Add whole lines."""
        alike: dict[tuple[str, ...], list[MetricsRecord]] = {}
        for record in self._records(block):
            elapsed_s: Any = record.get("elapsed_s")
            if type(elapsed_s) is float or _is_number(elapsed_s):
                self._elapsed_s = float(elapsed_s)
            else:  # a validation of quintic 0.1, of the time of the step before it
                record["elapsed_s"] = self._elapsed_s
            alike.setdefault(tuple(record), []).append(record)
            if record["step"] >= self.last.get("step", 0):  # an overview has seen the last
                self.last.update(record)
        for names, records in alike.items():
            try:
                every = itertools.chain.from_iterable(record.values() for record in records)
                rows = np.fromiter(every, np.float64).reshape(len(records), -1)
            except (ValueError, TypeError, OverflowError):
                for record in map(_numbers, records):
                    tables.setdefault(tuple(record), _Table(record)).add(
                        np.array([tuple(record.values())], np.float64)
                    )
            else:
                tables.setdefault(names, _Table(names)).add(rows)

    def _records(self, block: bytes) -> Iterator[MetricsRecord]:
        try:
            found = _loads(b"[" + block.rstrip(b"\n").replace(b"\n", b",") + b"]")
        except ValueError:
            found = self._one_by_one(block.splitlines())
        for record in found:
            if type(record) is not dict or not _is_number(record.get("step")):
                self.bad_lines += 1
                continue
            if DIVERGED in record:
                lost = record.pop(DIVERGED)
                record |= dict.fromkeys(lost if isinstance(lost, dict) else (), math.nan)
            yield record

    def _one_by_one(self, lines: Iterable[bytes]) -> Iterator[Any]:
        for line in lines:
            try:
                yield json.loads(line)  # reads the bare NaN of older runs, too
            except (ValueError, RecursionError):
                self.bad_lines += 1

    @property
    def _shown(self) -> _Tables:
        return self._tables if self._overview is None else self._overview

    @property
    def fields(self) -> list[str]:
        """Return the fields of which there are numbers, other than places."""
        with self._guard:
            return list(dict.fromkeys(n for t in self._shown for n in t if n not in PLACES))

    def column(self, field: str, place: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of a field's values, rising, and the values; where two have one place,
        as where a run wrote it twice, the later counts."""
        with self._guard:
            tables = [t for names, t in self._shown.items() if field in names and place in names]
            x = np.concatenate([np.empty(0), *(table.column(place) for table in tables)])
            y = np.concatenate([np.empty(0, "f4"), *(table.column(field) for table in tables)])
        if len(x) > 1 and not np.all(x[1:] > x[:-1]):
            order = np.argsort(x, kind="stable")
            x, y = x[order], y[order]
            kept = np.append(x[1:] != x[:-1], True)
            x, y = x[kept], y[kept]
        return x, y

    def number(self, field: str) -> float | None:
        """Return the newest value of a field; None where it is no number, or not finite."""
        value = self.last.get(field)
        return value if _is_number(value) else None

    def recent(self, field: str, count: int) -> list[float]:
        """Return the last values of a field that are numbers, at most `count`."""
        values = self.column(field, "step")[1][-count:]
        return [float(value) for value in values[np.isfinite(values)]]


class _Table:
    """Records with the same fields, as columns that grow."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def add(self, rows: np.ndarray) -> None:
        for name, values in zip(self._parts, rows.T, strict=True):
            kind = np.float64 if name in PLACES else np.float32
            with np.errstate(over="ignore"):
                self._parts[name].append(values.astype(kind))

    def column(self, name: str) -> np.ndarray:
        parts = self._parts[name]
        if len(parts) > 1:
            parts[:] = [np.concatenate(parts)]
        return parts[0]


_Tables = dict[tuple[str, ...], _Table]
"""Records by their fields."""


def _some_lines(file: BinaryIO, distance: int) -> bytes:
    """Return the lines at so many bytes' distance, all with a validation, and the last."""
    lines: list[bytes] = []
    at, last = 0, b""
    while True:
        file.seek(at)
        block = file.read(OVERVIEW_BLOCK_BYTES)
        end = block.rfind(b"\n") + 1
        if not end:  # of the file, or a line that is no record's
            break
        places = {*range(-at % distance, end, distance)}
        # A single byte is searched for ten times as fast as a name, and few fields have this one.
        place = block.find(b"v")
        while 0 <= place < end:
            if block.startswith(VALIDATION, place - 1):
                places.add(place)
            place = block.find(b"v", place + 1)
        done = 0
        for place in sorted(places):
            if place >= done:
                start, done = block.rfind(b"\n", 0, place) + 1, block.find(b"\n", place) + 1
                lines.append(block[start:done])
        at, last = at + end, block[block.rfind(b"\n", 0, end - 1) + 1 : end]
    if last not in lines[-1:]:
        lines.append(last)
    return b"".join(lines)


def _is_number(value: Any) -> bool:
    """Return whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _numbers(record: MetricsRecord) -> MetricsRecord:
    """Return the fields that are numbers, or null, which is none."""
    return {name: value for name, value in record.items() if value is None or _is_number(value)}
