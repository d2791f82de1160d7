"""`diagnostics.jsonl` of a run: one object a line, each of a measured step.

What is not finite, or does not exist, is null. `docs/diagnostics.md` has the fields.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from quintic.errors import QuinticError
from quintic.metrics_file import read_records

DIAGNOSTICS = "diagnostics.jsonl"
DiagnosticsRecord = dict[str, Any]


def to_line(record: DiagnosticsRecord) -> str:
    """Return a record as a line of JSON."""
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_diagnostics(path: Path | str) -> list[DiagnosticsRecord]:
    """Return the records of a run, by its folder or its `diagnostics.jsonl`, in the order of the
    steps; a last line cut short by a crash is left out.

    Raises `QuinticError` where there is no such file, or another line is not a record.
    """
    path = Path(path)
    file = path / DIAGNOSTICS if path.is_dir() else path
    if not file.exists():
        raise QuinticError(
            f"there is no {file}: train with --train.diagnostics-every N, or name another run"
        )
    return read_records(file)
