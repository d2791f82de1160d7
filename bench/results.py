"""What a benchmark writes down: figures with machine, versions, commit and date."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from quintic.run_dir import describe_environment

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def write_result(
    name: str,
    figures: dict[str, Any],
    device: torch.device,
    *,
    module: str | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write NAME.json; `module` is what wrote it, where NAME does not begin so."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = describe_environment(device)
    environment["command"] = f"python -m {module or 'bench.' + name.split('-')[0]}"
    path.write_text(json.dumps({"environment": environment, **figures}, indent=1) + "\n")
    return path


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns, the first to the left and the others to the right."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        first, *rest = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]))


def interleaved(
    candidates: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each candidate, taken in turn (A B A B ...), so that drift hits all alike."""
    for function in candidates.values():
        for _ in range(warmup):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            began = clock()
            function()
            seconds[name].append(clock() - began)
    return seconds


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the rounds of slow / fast: how many times faster the second is."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))
