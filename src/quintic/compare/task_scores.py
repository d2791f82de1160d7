"""Scores on standard tasks side by side: of two models by their items, of two groups by their runs.

With one run each, the same items are a pair each, and McNemar's test asks of those that only one of
the two got right whether they fall evenly (https://doi.org/10.1007/BF02295996; exact, by the
binomial distribution). That is of these two models. With several runs in each group their scores
are tested as their losses are, which is of the configs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quintic.compare.groups import Group
from quintic.compare.statistics import CONFIDENCE, Difference, difference, level_of_each
from quintic.console import Table
from quintic.errors import counted
from quintic.tasks.score import Score, TaskScores, Values, read_scores


@dataclass(frozen=True)
class McNemar:
    """The items that only one of two models got right."""

    own: int
    first: int
    p: float
    """Two-sided."""


@dataclass(frozen=True)
class TaskResult:
    """A metric of a task for one group."""

    label: str
    task: str
    metric: str
    values: tuple[float, ...]
    """One for each run that has it."""
    stderr: float | None
    """Over the items, of one run's score."""
    by_items: McNemar | None
    """Against the first group, with one run each."""
    by_runs: Difference | None
    """Against the first group, with several runs in both."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TaskComparison:
    """The scores of all groups, and what could not be compared."""

    results: tuple[TaskResult, ...]
    notes: tuple[str, ...]
    level: float
    """What each p is held against."""


def compare_tasks(groups: Sequence[Group]) -> TaskComparison:
    """Compare the scores that runs keep in their folders with those of the first group.

    Raises `QuinticError` where a file of scores is damaged.
    """
    found = [
        [read_scores(run.path) for run in group.counted if run.source == "quintic"]
        for group in groups
    ]
    tasks = sorted({task for group in found for scores in group for task in scores})
    results, notes = [], []
    for task in tasks:
        columns = [[scores[task] for scores in group if task in scores] for group in found]
        missing = [g.label for g, column in zip(groups, columns, strict=True) if not column]
        if missing:
            notes.append(f"{' and '.join(missing)} has no scores of {task}")
        chosen = [(g, column) for g, column in zip(groups, columns, strict=True) if column]
        if len({scores.fingerprint for _, column in chosen for scores in column}) > 1:
            notes.append(
                f"the scores of {task} are of different items, and are not compared: score the "
                "runs again with the same --task-data"
            )
            continue
        steps = sorted({scores.step for _, column in chosen for scores in column if scores.step})
        if len(steps) > 1:
            notes.append(
                f"the scores of {task} are of different steps, {steps[0]:,} to {steps[-1]:,}"
            )
        for metric in chosen[0][1][0].items:
            first = chosen[0][1]
            results.append(_result(chosen[0][0].label, task, metric, first, None))
            results += [_result(g.label, task, metric, own, first) for g, own in chosen[1:]]
    return TaskComparison(tuple(results), tuple(notes), level_of_each(max(1, len(groups) - 1)))


def _result(
    label: str,
    task: str,
    metric: str,
    own: Sequence[TaskScores],
    first: Sequence[TaskScores] | None,
) -> TaskResult:
    values = [_value(scores, metric) for scores in own]
    by_items = by_runs = None
    if first is not None and len(own) == len(first) == 1 and metric != "perplexity":
        by_items = mcnemar(own[0].items[metric], first[0].items[metric])
    if first is not None and min(len(own), len(first)) > 1:
        by_runs = difference(values, [_value(scores, metric) for scores in first])
    stderr = own[0].metrics[metric].stderr if len(own) == 1 else None
    return TaskResult(label, task, metric, tuple(values), stderr, by_items, by_runs)


def _value(scores: TaskScores, metric: str) -> float:
    return scores.metrics[metric].value


def mcnemar(own: Values, first: Values) -> McNemar:
    """Return McNemar's exact test of two models' right (1) and wrong (0) answers, [n] each."""
    from scipy.stats import binomtest

    only_own = int(np.sum((own == 1) & (first == 0)))
    only_first = int(np.sum((own == 0) & (first == 1)))
    apart = only_own + only_first
    p = float(binomtest(only_own, apart).pvalue) if apart else 1.0
    return McNemar(only_own, only_first, p)


def tasks_table(comparison: TaskComparison) -> Table | None:
    """Return a row for each metric and a column for each group; None where nothing was scored."""
    labels = list(dict.fromkeys(result.label for result in comparison.results))
    rows: dict[str, list[str]] = {}
    for result in comparison.results:
        row = rows.setdefault(f"{result.task} {result.metric}", ["–"] * len(labels))
        row[labels.index(result.label)] = _score_text(result)
    return Table(["", *labels], [[name, *row] for name, row in rows.items()]) if rows else None


def _score_text(result: TaskResult) -> str:
    error = result.stderr
    if len(result.values) > 1:
        error = statistics.stdev(result.values) / len(result.values) ** 0.5
    return str(Score(statistics.fmean(result.values), error))


def task_conclusions(comparison: TaskComparison) -> Iterator[str]:
    """Yield a sentence for each score that was tested against the first group's."""
    for note in comparison.notes:
        yield f"{note[0].upper()}{note[1:]}."
    first = {(r.task, r.metric): r for r in reversed(comparison.results)}
    for result in comparison.results:
        reference = first[result.task, result.metric]
        if result is reference:
            continue
        gap = statistics.fmean(result.values) - statistics.fmean(reference.values)
        opening = (
            f"{result.task} {result.metric}: {result.label} is {abs(gap):.4f} "
            f"{'higher' if gap > 0 else 'lower'} than {reference.label}"
        )
        if result.by_items is not None:
            yield _by_items(opening, result.by_items, comparison.level)
        elif result.by_runs is not None:
            yield _by_runs(opening, result, reference, result.by_runs, comparison.level)
        else:
            yield f"{opening}; with one run on a side that is not tested."


def _by_items(opening: str, test: McNemar, level: float) -> str:
    supports = "supports" if test.p < level else "does not support"
    return (
        f"{opening}: {test.own:,} items only it got right, {test.first:,} only the other, "
        f"McNemar's test p = {test.p:.2g}: at {level:.2g} the evidence {supports} that these two "
        "models differ; another seed of each may do otherwise."
    )


def _by_runs(
    opening: str, result: TaskResult, reference: TaskResult, test: Difference, level: float
) -> str:
    runs = f"{len(result.values)} and {counted(len(reference.values), 'run')}"
    if test.p is None or test.low is None or test.high is None:
        return f"{opening} ({runs}), and there is no spread to test with."
    supports = "supports" if test.p < level else "does not support"
    return (
        f"{opening} in the mean ({runs}, {CONFIDENCE:.0%} interval {test.low:+.4f} to "
        f"{test.high:+.4f}, Welch's test p = {test.p:.2g}): at {level:.2g} the evidence {supports} "
        "a difference."
    )
