"""Where the time of a run went, and how fast its steps were, out of its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintic.metrics_file import MetricsRecord


@dataclass(frozen=True)
class TimeSpent:
    """The seconds of a run by what they were spent on."""

    gradients_s: float
    """Reading batches, forward and backward passes, and adding up among processes."""
    optimizer_s: float
    validation_s: float
    tasks_s: float
    samples_s: float

    @property
    def total_s(self) -> float:
        """Return all of them together: set-up and checkpoints are not measured."""
        training_s = self.gradients_s + self.optimizer_s
        return training_s + self.validation_s + self.tasks_s + self.samples_s


def time_spent(records: Sequence[MetricsRecord], samples: Sequence[dict[str, Any]]) -> TimeSpent:
    """Return where the time went; where not every step was written, those that were stand for all
    in how much of a step is the optimizer's."""
    training_s = max((record.get("elapsed_s", 0.0) for record in records), default=0.0)
    steps = [r for r in records if "step_ms" in r and "optimizer_ms" in r]
    whole_ms = sum(record["step_ms"] for record in steps)
    share = sum(record["optimizer_ms"] for record in steps) / whole_ms if whole_ms else 0.0
    optimizer_s = min(share, 1.0) * training_s
    return TimeSpent(
        gradients_s=training_s - optimizer_s,
        optimizer_s=optimizer_s,
        validation_s=sum(record.get("val_s", 0.0) for record in records),
        tasks_s=sum(record.get("tasks_s", 0.0) for record in records),
        samples_s=sum(sample.get("sample_s", 0.0) for sample in samples),
    )


@dataclass(frozen=True)
class StepTimes:
    """The times of the steps that were written, in milliseconds, and what came of them."""

    median_ms: float
    fastest_ms: float
    slow_ms: float
    """Nineteen of twenty steps took no longer."""
    slowest_ms: float
    slowest_step: int
    tokens_per_s: float
    """The median."""
    mfu: float | None
    """The median; None where the device's peak is not known."""
    memory_gib: float | None


def step_times(records: Sequence[MetricsRecord]) -> StepTimes | None:
    """Return how fast the steps were; None where none was written."""
    steps = [record for record in records if "step_ms" in record]
    if not steps:
        return None
    times = np.array([record["step_ms"] for record in steps])
    mfu = [record["mfu"] for record in steps if "mfu" in record]
    memory = [record["memory_gib"] for record in steps if "memory_gib" in record]
    return StepTimes(
        median_ms=float(np.median(times)),
        fastest_ms=float(times.min()),
        slow_ms=float(np.quantile(times, 0.95)),
        slowest_ms=float(times.max()),
        slowest_step=steps[int(times.argmax())]["step"],
        tokens_per_s=float(np.median([record["tokens_per_s"] for record in steps])),
        mfu=float(np.median(mfu)) if mfu else None,
        memory_gib=max(memory) if memory else None,
    )
