"""Scores on tasks in the records of `metrics.jsonl`, and the curves that figures and pages draw.

A record has for each task its metrics, `blimp/acc`, the standard error of each, `blimp/acc_stderr`,
and the accuracy of guessing, `blimp/chance`. Importing it loads no PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintic.metrics_file import MetricsRecord
    from quintic.tasks.score import TaskScores

STDERR, CHANCE = "_stderr", "chance"


def score_fields(scores: TaskScores) -> dict[str, float]:
    """Return what a record says of a task, by the names that follow that of the task; a standard
    error and an accuracy of guessing only where there is one."""
    found = {}
    for name, score in scores.metrics.items():
        found[name] = score.value
        if score.stderr is not None:
            found[name + STDERR] = score.stderr
    return {**found, CHANCE: scores.chance} if scores.chance else found


def is_metric(field: str) -> bool:
    """Return whether a field of a record is the value of a task's metric."""
    return "/" in field and not field.endswith(STDERR) and not field.endswith(f"/{CHANCE}")


def chance_field(field: str) -> str | None:
    """Return the field with the accuracy of guessing for that of a metric; None where the metric is
    no accuracy."""
    task, metric = field.rsplit("/", 1)
    return f"{task}/{CHANCE}" if metric.startswith("acc") else None


@dataclass(frozen=True)
class ScoreCurve:
    """A metric of a task over the steps at which it was scored."""

    field: str
    """Its name in the records, such as `blimp/acc`."""
    records: Sequence[MetricsRecord]
    """Those that have it, in the order of the run."""

    @property
    def task(self) -> str:
        """Return the name of the task."""
        return self.field.rsplit("/", 1)[0]

    @property
    def name(self) -> str:
        """Return task and metric in words."""
        return self.field.replace("/", " ")

    @property
    def values(self) -> list[float]:
        """Return the value at each record."""
        return [record[self.field] for record in self.records]

    @property
    def last(self) -> str:
        """Return the last value in words, with its standard error where one was written."""
        from quintic.tasks.score import Score  # here, since it loads PyTorch

        return str(Score(self.values[-1], self.records[-1].get(self.field + STDERR)))

    @property
    def band(self) -> tuple[list[float], list[float]]:
        """Return the value at each record less and plus its standard error."""
        stderrs = [record.get(self.field + STDERR, 0.0) for record in self.records]
        low, high = (
            [value + sign * stderr for value, stderr in zip(self.values, stderrs, strict=True)]
            for sign in (-1, 1)
        )
        return low, high

    @property
    def chance(self) -> float | None:
        """Return the accuracy of guessing; None where the metric is none, or none was written."""
        field = chance_field(self.field)
        return None if field is None else self.records[-1].get(field)


def score_curves(records: Sequence[MetricsRecord]) -> list[ScoreCurve]:
    """Return the curves of all metrics of all tasks, in the order of the records."""
    fields = dict.fromkeys(field for record in records for field in record if is_metric(field))
    return [ScoreCurve(field, [r for r in records if field in r]) for field in fields]


def first_of_each_task(curves: Sequence[ScoreCurve]) -> list[ScoreCurve]:
    """Return the curve of each task's first metric, by which a model is judged: its accuracy."""
    by_task: dict[str, ScoreCurve] = {}
    for curve in curves:
        by_task.setdefault(curve.task, curve)
    return list(by_task.values())


def chance_level(y: float, text: str) -> dict[str, Any]:
    """Return an accuracy of guessing as a chart marks it, at the right: curves begin at it."""
    return {"y": y, "text": text, "last": True}


def chance_levels(curves: Sequence[ScoreCurve]) -> list[dict[str, Any]]:
    """Return the accuracies of guessing, to two digits, each with the tasks whose it is."""
    tasks: dict[float, list[str]] = {}
    for curve in first_of_each_task(curves):
        if curve.chance is not None:
            tasks.setdefault(round(curve.chance, 2), []).append(curve.task)
    return [chance_level(y, f"chance of {', '.join(names)}") for y, names in tasks.items()]
