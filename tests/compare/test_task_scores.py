"""Scores on tasks side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from quintic.compare.groups import Group
from quintic.compare.task_scores import (
    compare_tasks,
    mcnemar,
    perplexity_ratio,
    task_conclusions,
    tasks_table,
)
from quintic.tasks.score import TaskScores, save_scores
from tests.compare.records import record


def scored(values: list[int], fingerprint: str = "f") -> TaskScores:
    items = {"acc": np.array(values, dtype=float)}
    return TaskScores(
        "piqa", "made up", fingerprint, ["piqa"] * len(values), {"piqa": "piqa"}, items, 0.5
    )


def group(label: str, folder: Path, *runs: TaskScores | None) -> Group:
    records = []
    for seed, scores in enumerate(runs):
        path = folder / label / str(seed)
        path.mkdir(parents=True)
        if scores is not None:
            save_scores(path, 10, scores)
        records.append(record(str(path), [5.0, 4.0 + seed], seed=seed))
    return Group(label, tuple(records))


def test_two_models_are_tested_by_the_items_that_only_one_got_right(tmp_path: Path) -> None:
    a = [1] * 30 + [1] * 12 + [0] * 3 + [0] * 15
    b = [1] * 30 + [0] * 12 + [1] * 3 + [0] * 15
    found = mcnemar(np.array(b, dtype=float), np.array(a, dtype=float))
    assert (found.own, found.first) == (3, 12)
    assert found.p == pytest.approx(2 * sum((1, 15, 105, 455)) / 2**15)
    comparison = compare_tasks([group("a", tmp_path, scored(a)), group("b", tmp_path, scored(b))])
    [sentence] = task_conclusions(comparison)
    assert "piqa acc: b is 0.1500 lower than a: 3 items only it got right, 12 only the other" in (
        sentence
    )
    assert "McNemar's test p = 0.035: at 0.01 the evidence does not support" in sentence
    table = tasks_table(comparison)
    assert table is not None
    assert table.rows[0][0] == "piqa acc"
    assert table.rows[0][1].startswith("0.7000 ± 0.05")


def test_equal_answers_are_no_difference(tmp_path: Path) -> None:
    assert mcnemar(np.ones(4), np.ones(4)).p == 1
    groups = [group(label, tmp_path, scored([1, 0, 1])) for label in "ab"]
    [sentence] = task_conclusions(compare_tasks(groups))
    assert sentence.startswith("piqa acc: b scores the same as a: 0 items only it got right")
    assert np.exp(0) == perplexity_ratio(np.zeros(3), np.zeros(3)).value
    assert perplexity_ratio(np.ones(3), np.ones(3)).p == 1


def test_perplexities_are_tested_by_drawing_the_same_items_of_both(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    a = random.normal(-20, 5, 400)  # items differ much more than the two models do
    b = a + random.normal(0.1, 0.5, 400)
    found = perplexity_ratio(b, a)
    error = (b - a).std(ddof=1) / 20
    assert found.value == pytest.approx(np.exp(-(b - a).mean()))
    assert found.low == pytest.approx(np.exp(-((b - a).mean() + 1.96 * error)), rel=0.005)
    assert found.high == pytest.approx(np.exp(-((b - a).mean() - 1.96 * error)), rel=0.005)
    expected = ttest_1samp(b - a, 0).pvalue
    assert 0.001 < expected < 0.01
    assert found.p == pytest.approx(expected, rel=0.5)
    assert perplexity_ratio(a, b).p == found.p
    both = [
        group(label, tmp_path, TaskScores("x", "", "f", ["x"] * 400, {"x": "x"}, items, 0))
        for label, items in (("a", {"perplexity": a}), ("b", {"perplexity": b}))
    ]
    [sentence] = task_conclusions(compare_tasks(both))
    assert f"x perplexity: that of b is {found.value:.3g} times that of a: 95% interval" in sentence
    assert f"over the same 400 items, p = {found.p:.2g}: at 0.01 the evidence supports" in sentence
    assert perplexity_ratio(a + 9, a).p == 1e-4


def test_groups_of_subtasks_are_tested_each_at_its_share_of_the_level(tmp_path: Path) -> None:
    subtasks = ["s"] * 40 + ["t"] * 40
    names = {"s": "syntax", "t": "meaning"}
    a, b = np.zeros(80), np.zeros(80)
    b[:20] = 1  # twenty of syntax that b alone gets right
    a[40:43] = 1
    groups = [
        group(label, tmp_path, TaskScores("blimp", "", "f", subtasks, names, {"acc": values}, 0.5))
        for label, values in (("a", a), ("b", b))
    ]
    comparison = compare_tasks(groups)
    whole, parts = task_conclusions(comparison)
    assert "20 items only it got right, 3 only the other" in whole
    assert parts == (
        "Of the 2 parts of blimp, at 0.005 the evidence supports that b scores higher in syntax "
        "than a, and in no other."
    )
    table = tasks_table(comparison)
    assert table is not None
    assert [row[0] for row in table.rows] == [
        "blimp acc",
        "blimp acc: meaning",
        "blimp acc: syntax",
    ]
    assert table.rows[1][2] == f"0.0000 ± 0.0000 (p {2 / 2**3:.2g})"
    assert table.rows[2][2].startswith("0.5000 ± 0.0")
    assert table.rows[2][2].endswith(f"(p {2 / 2**20:.2g})")


def test_groups_of_runs_are_tested_by_their_runs(tmp_path: Path) -> None:
    a = [scored([1] * n + [0] * (100 - n)) for n in (60, 62, 64)]
    b = [scored([1] * n + [0] * (100 - n)) for n in (70, 71, 75)]
    comparison = compare_tasks([group("a", tmp_path, *a), group("b", tmp_path, *b)])
    expected = ttest_ind([0.7, 0.71, 0.75], [0.6, 0.62, 0.64], equal_var=False)
    result = comparison.results[1]
    assert result.by_items is None
    assert result.by_runs is not None
    assert result.by_runs.p == pytest.approx(expected.pvalue)
    [sentence] = task_conclusions(comparison)
    assert "b is 0.1000 higher than a in the mean (3 and 3 runs" in sentence


def test_what_was_not_scored_alike_is_said(tmp_path: Path) -> None:
    groups = [group("a", tmp_path, scored([1, 0])), group("b", tmp_path, None)]
    assert list(task_conclusions(compare_tasks(groups))) == ["There are no scores of piqa of b."]
    groups = [groups[0], group("c", tmp_path, scored([1, 0], "other"))]
    [sentence] = task_conclusions(compare_tasks(groups))
    assert "The scores of piqa are of different items" in sentence
    nothing = compare_tasks([group("d", tmp_path, None)])
    assert tasks_table(nothing) is None
    assert list(task_conclusions(nothing)) == []
