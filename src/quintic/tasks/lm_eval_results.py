"""What lm-evaluation-harness has computed, as the scores that a run's folder keeps.

lm-eval gives a value of each metric and, for each item, what went into it. Where the value is the
mean of the items, or exp of minus it for a perplexity, the items are kept, so that two models can
be compared by them; where it is made otherwise, as BLEU is, or a perplexity by words, the value
alone is. Written for what `simple_evaluate` of lm-eval 0.4.13 returns; nothing here imports it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real  # of NumPy, too
from typing import Any

import numpy as np

from quintic.errors import counted
from quintic.tasks.score import Score, TaskScores, Values

PREFIX = "lm-eval-"
"""Begins the name of what is kept, since quintic's own tasks have the same names."""

Sample = Mapping[str, Any]


def kept_scores(results: Mapping[str, Any]) -> list[TaskScores]:
    """Return the scores of each task; those of a group that has scores of its own, such as mmlu,
    as one task with its tasks for subtasks."""
    groups = {name: [*_leaves(name, results)] for name in results.get("groups", {})}
    inner = {child for name in groups for child in _below(name, results)}
    chosen = {name: leaves for name, leaves in groups.items() if name not in inner}
    in_groups = {leaf for leaves in chosen.values() for leaf in leaves}
    chosen |= {name: [name] for name in results["samples"] if name not in in_groups}
    return [_scores(name, leaves, results) for name, leaves in chosen.items()]


def _below(name: str, results: Mapping[str, Any]) -> Iterator[str]:
    for child in results.get("group_subtasks", {}).get(name, ()):
        yield child
        yield from _below(child, results)


def _leaves(name: str, results: Mapping[str, Any]) -> Iterator[str]:
    yield from dict.fromkeys(
        child for child in _below(name, results) if child in results["samples"]
    )


def _scores(name: str, leaves: Sequence[str], results: Mapping[str, Any]) -> TaskScores:
    by_leaf = {leaf: _by_item(results["samples"][leaf]) for leaf in leaves}
    shots = results.get("n-shot", {}).get(name)
    found = TaskScores(
        PREFIX + re.sub(r"[^\w.-]", "-", name),
        f"lm-eval {results['lm_eval_version']}, version {results['versions'].get(name)} of the task"
        + ("" if shots is None else f", {counted(shots, 'example')} before a question"),
        _fingerprint(by_leaf),
        [leaf for leaf, items in by_leaf.items() for _ in items],
        {leaf: leaf for leaf in leaves},
        items={},
        chance=0.0,
    )
    for metric, key, score in _metrics(results["results"][name]):
        found = _with_metric(found, metric, score, _values(by_leaf, *key))
    return found


def _with_metric(found: TaskScores, metric: str, score: Score, values: Values | None) -> TaskScores:
    """Return scores with one more metric: of its items where a mean of them is the score."""
    for by_size in (found.by_size,) if found.items else (False, True):
        if values is None:
            break
        alone = replace(found, items={metric: values}, totals={}, by_size=by_size)
        if math.isclose(alone.metrics[metric].value, score.value, rel_tol=1e-6, abs_tol=1e-9):
            return replace(found, items={**found.items, metric: values}, by_size=by_size)
    return replace(found, totals={**found.totals, metric: score})


def _metrics(row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str], Score]]:
    """Yield the name of each metric, what lm-eval calls it and the filter of answers behind it, and
    the score."""
    for key, value in row.items():
        metric, _, answers = key.partition(",")
        if answers and not metric.endswith("_stderr") and isinstance(value, Real):
            stderr = row.get(f"{metric}_stderr,{answers}")
            score = Score(float(value), float(stderr) if isinstance(stderr, Real) else None)
            yield metric if answers == "none" else f"{metric} ({answers})", (metric, answers), score


def _by_item(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    """Return the samples of each item, one for each filter, in the order of the items."""
    found: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        found.setdefault(int(sample["doc_id"]), []).append(sample)
    return found


def _values(
    by_leaf: Mapping[str, Mapping[int, Sequence[Sample]]], metric: str, answers: str
) -> Values | None:
    """Return a number for each item, [n]; None where some item has none."""
    found = [
        [sample[metric] for sample in samples if sample["filter"] == answers and metric in sample]
        for items in by_leaf.values()
        for samples in items.values()
    ]
    if any(len(values) != 1 for values in found):
        return None
    try:
        values_n = np.array([values[0] for values in found], dtype=np.float64)
    except (TypeError, ValueError):  # such as a text with what it should have been
        return None
    return values_n if values_n.ndim == 1 else None


def _fingerprint(by_leaf: Mapping[str, Mapping[int, Sequence[Sample]]]) -> str:
    hashes = ("doc_hash", "prompt_hash", "target_hash")
    asked = [
        [leaf, item, *(samples[0].get(name) for name in hashes)]
        for leaf, items in by_leaf.items()
        for item, samples in items.items()
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
