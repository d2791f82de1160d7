"""Records of runs that were never trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quintic.compare.record import DatasetIdentity, RunRecord, Validation

STEP_TOKENS, STEP_S = 1000, 0.5


def record(
    name: str,
    losses: Sequence[float],
    *,
    seed: int | None = 1,
    every: int = 10,
    settings: dict[str, Any] | None = None,
    flops_per_token: float | None = None,
    **fields: Any,
) -> RunRecord:
    """A run that validated every `every` steps, with these losses, and ended there.

    Runs of different seeds do not take the same time to the last digit: those would be copies.
    """
    step_s = STEP_S * (1 + 1e-9 * ((seed or 1) - 1))
    validations = tuple(
        Validation(
            i * every,
            i * every * STEP_TOKENS,
            i * every * step_s,
            loss,
            flops=flops_per_token and i * every * STEP_TOKENS * flops_per_token,
        )
        for i, loss in enumerate(losses)
    )
    values: dict[str, Any] = {
        "source": "quintic",
        "settings": {"recipe": "laptop", "train.seed": seed, **(settings or {})},
        "data": DatasetIdentity(fingerprint="f" * 64, described=("folder",), eval_tokens=512),
        "steps_planned": every * (len(losses) - 1),
    }
    return RunRecord(path=Path(name), validations=validations, **{**values, **fields})


def group_of(name: str, finals: Sequence[float], **options: Any) -> list[RunRecord]:
    """Runs of one config with other seeds, which fall in a line from 8 to these final losses."""
    return [
        record(f"{name}-seed{seed}", [8.0, (8 + final) / 2, final], seed=seed, **options)
        for seed, final in enumerate(finals, start=1)
    ]
