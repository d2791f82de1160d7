"""Scores on standard tasks side by side: of two models by their items, of two groups by their runs.

With one run each, the same items are a pair each, and McNemar's test asks of those that only one of
the two got right whether they fall evenly (https://doi.org/10.1007/BF02295996; exact, by the
binomial distribution). Of a perplexity the pairs are drawn again and again (the bootstrap, Efron
1979, https://doi.org/10.1214/aos/1176344552). That is of these two models. With several runs in
each group their scores are tested as their losses are, which is of the configs.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quintic.compare.groups import Group
from quintic.compare.statistics import CONFIDENCE, Difference, difference, level_of_each
from quintic.console import Table
from quintic.errors import counted
from quintic.tasks.score import (
    Score,
    TaskScores,
    Values,
    format_of,
    perplexity,
    read_scores,
    resampled_means,
)

RESAMPLES = 10_000


@dataclass(frozen=True)
class McNemar:
    """The items that only one of two models got right."""

    own: int
    first: int
    p: float
    """Two-sided."""


@dataclass(frozen=True)
class PerplexityRatio:
    """A perplexity over another, of the same items, with its bootstrap interval."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided; at least 1 / RESAMPLES."""
    items: int


@dataclass(frozen=True)
class TaskResult:
    """A metric of a task, or of a group of its subtasks, for one group of runs."""

    label: str
    task: str
    part: str | None
    """Group of subtasks; None for the whole task."""
    metric: str
    values: tuple[float, ...]
    """One for each run that has it."""
    stderr: float | None
    """Over the items, of one run's score."""
    by_items: McNemar | PerplexityRatio | None
    """Against the first group, with one run each."""
    by_runs: Difference | None
    """Against the first group, with several runs in both."""

    @property
    def p(self) -> float | None:
        """Return the p of its test; None where it was not tested."""
        test = self.by_items or self.by_runs
        return None if test is None else test.p

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TaskComparison:
    """The scores of all groups, and what could not be compared."""

    results: tuple[TaskResult, ...]
    notes: tuple[str, ...]
    level: float
    """The level that each p of a whole task is held against."""


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
            notes.append(f"there are no scores of {task} of {' and '.join(missing)}")
        chosen = [(g, column) for g, column in zip(groups, columns, strict=True) if column]
        compared = [scores for _, column in chosen for scores in column]
        if len({scores.fingerprint for scores in compared}) > 1:
            notes.append(
                f"the scores of {task} are of different items, and are not compared: score the "
                "runs again with the same --task-data"
            )
            continue
        steps = sorted({scores.step for scores in compared if scores.step})
        if len(steps) > 1:
            notes.append(
                f"the scores of {task} are of different steps, {steps[0]:,} to {steps[-1]:,}"
            )
        for metric, part in itertools.product(compared[0].metrics, _parts(compared[0])):
            # A release of lm-eval may have other metrics, and not all of them are of parts.
            if any(metric not in (s.metrics if part is None else s.items) for s in compared):
                continue
            first = None
            for group, column in chosen:
                own = column if part is None else [scores.part(part) for scores in column]
                results.append(_result(group.label, part, metric, own, first))
                first = first or own
    return TaskComparison(tuple(results), tuple(notes), level_of_each(max(1, len(groups) - 1)))


def _parts(scores: TaskScores) -> list[str | None]:
    """Return None, which is the whole, and the groups of subtasks where there are several."""
    groups = sorted({*scores.groups.values()})
    return [None, *groups] if len(groups) > 1 else [None]


def _result(
    label: str,
    part: str | None,
    metric: str,
    own: Sequence[TaskScores],
    first: Sequence[TaskScores] | None,
) -> TaskResult:
    values = [_value(scores, metric) for scores in own]
    by_items: McNemar | PerplexityRatio | None = None
    by_runs = None
    if first is not None and len(own) == len(first) == 1:
        by_items = _test_by_items(metric, own[0], first[0])
    if first is not None and min(len(own), len(first)) > 1:
        by_runs = difference(values, [_value(scores, metric) for scores in first])
    stderr = own[0].metrics[metric].stderr if len(own) == 1 else None
    return TaskResult(label, own[0].task, part, metric, tuple(values), stderr, by_items, by_runs)


def _test_by_items(
    metric: str, own: TaskScores, first: TaskScores
) -> McNemar | PerplexityRatio | None:
    """Return the test of two models by the items of a metric; None where they have none, or they
    are no answers that are right or wrong, as those of F1."""
    if metric not in own.items or metric not in first.items:
        return None
    items = own.items[metric], first.items[metric]
    if metric == "perplexity":
        return perplexity_ratio(*items)
    return mcnemar(*items) if np.isin(items, (0, 1)).all() else None


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


def perplexity_ratio(own: Values, first: Values) -> PerplexityRatio:
    """Return the perplexity of one model over another's, of the log-likelihoods in nats that each
    gave to the same items, [n], with the percentile interval of the paired bootstrap."""
    apart = own - first
    means = resampled_means(apart, np.random.default_rng(0), RESAMPLES)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    beyond = float(min(np.mean(means <= 0), np.mean(means >= 0)))
    return PerplexityRatio(
        value=perplexity(float(apart.mean())),
        low=perplexity(float(high)),
        high=perplexity(float(low)),
        p=min(1.0, max(2 * beyond, 1 / RESAMPLES)),
        items=len(apart),
    )


def tasks_table(comparison: TaskComparison) -> Table | None:
    """Return a row for each metric, then one for each group of subtasks, with its p, and a column
    for each group of runs; None where nothing was scored."""
    labels = list(dict.fromkeys(result.label for result in comparison.results))
    rows: dict[str, list[str]] = {}
    for result in comparison.results:
        name = f"{result.task} {result.metric}"
        if result.part is not None:
            name = f"{name}: {result.part}"
        row = rows.setdefault(name, ["–"] * len(labels))
        row[labels.index(result.label)] = _score_text(result)
    return Table(["", *labels], [[name, *row] for name, row in rows.items()]) if rows else None


def _score_text(result: TaskResult) -> str:
    error = result.stderr
    if len(result.values) > 1:
        error = statistics.stdev(result.values) / len(result.values) ** 0.5
    text = str(Score(_mean(result), error))
    return f"{text} (p {result.p:.2g})" if result.part and result.p is not None else text


def _mean(result: TaskResult) -> float:
    return statistics.fmean(result.values)


def task_conclusions(comparison: TaskComparison) -> Iterator[str]:
    """Yield a sentence for each score that was tested against the first group's, and one for its
    groups of subtasks."""
    for note in comparison.notes:
        yield f"{note[0].upper()}{note[1:]}."
    by_metric: dict[tuple[str, str], dict[str, list[TaskResult]]] = {}
    for result in comparison.results:
        by_label = by_metric.setdefault((result.task, result.metric), {})
        by_label.setdefault(result.label, []).append(result)
    for reference, *others in (list(by_label.values()) for by_label in by_metric.values()):
        for whole, *parts in others:
            yield _sentence(whole, reference[0], comparison.level)
            if parts and parts[0].p is not None:
                yield _by_part(parts, reference[1:], comparison.level / len(parts))


def _direction(result: TaskResult, reference: TaskResult) -> str:
    gap = _mean(result) - _mean(reference)
    return "" if math.isclose(gap, 0, abs_tol=1e-12) else "higher" if gap > 0 else "lower"


def _sentence(result: TaskResult, reference: TaskResult, level: float) -> str:
    name, direction = f"{result.task} {result.metric}", _direction(result, reference)
    gap = abs(_mean(result) - _mean(reference))
    opening = f"{name}: {result.label} is {gap:{format_of(gap)}} {direction} than {reference.label}"
    if not direction:
        opening = f"{name}: {result.label} scores the same as {reference.label}"
    elif isinstance(result.by_items, PerplexityRatio):
        opening = (
            f"{name}: that of {result.label} is {result.by_items.value:.3g} times that of "
            f"{reference.label}"
        )
    if result.by_items is not None:
        return _by_items(opening, result.by_items, level)
    if result.by_runs is not None:
        return _by_runs(opening, result, reference, result.by_runs, level)
    return f"{opening}; with one run on a side that is not tested."


def _by_items(opening: str, test: McNemar | PerplexityRatio, level: float) -> str:
    supports = "supports" if test.p < level else "does not support"
    if isinstance(test, McNemar):
        found = (
            f"{test.own:,} items only it got right, {test.first:,} only the other, McNemar's test "
            f"p = {test.p:.2g}"
        )
    else:
        found = (
            f"{CONFIDENCE:.0%} interval {test.low:.3g} to {test.high:.3g}, by bootstrap over the "
            f"same {counted(test.items, 'item')}, p "
            + (f"= {test.p:.2g}" if test.p > 1 / RESAMPLES else f"<= {test.p:.2g}")
        )
    return (
        f"{opening}: {found}: at {level:.2g} the evidence {supports} that these two models differ; "
        "another seed of each may do otherwise."
    )


def _by_runs(
    opening: str, result: TaskResult, reference: TaskResult, test: Difference, level: float
) -> str:
    runs = f"{len(result.values)} and {counted(len(reference.values), 'run')}"
    if test.p is None or test.low is None or test.high is None:
        return f"{opening} ({runs}), and there is no spread to test with."
    supports = "supports" if test.p < level else "does not support"
    form = format_of(max(abs(test.low), abs(test.high)))
    return (
        f"{opening} in the mean ({runs}, {CONFIDENCE:.0%} interval {test.low:+{form}} to "
        f"{test.high:+{form}}, Welch's test p = {test.p:.2g}): at {level:.2g} the evidence "
        f"{supports} a difference."
    )


def _by_part(parts: Sequence[TaskResult], references: Sequence[TaskResult], level: float) -> str:
    """Say in which groups of subtasks the scores differ, each p against its share of the level."""
    found: dict[str, list[str]] = {"higher": [], "lower": []}
    for part, reference in zip(parts, references, strict=True):
        if part.p is not None and part.p < level and (way := _direction(part, reference)):
            found[way].append(str(part.part))
    whole, label = f"Of the {len(parts)} parts of {parts[0].task}", parts[0].label
    told = " and ".join(f"{way} in {', '.join(names)}" for way, names in found.items() if names)
    if not told:
        return f"{whole}, at {level:.2g} the evidence supports a difference in none."
    return (
        f"{whole}, at {level:.2g} the evidence supports that {label} scores {told} than "
        f"{references[0].label}, and in no other."
    )
