"""Which runs are a group, what it is called, what differs, and what does not compare."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quintic.compare.groups import check_same_data, differing_settings, group_runs
from quintic.compare.record import DatasetIdentity, RunRecord
from quintic.errors import QuinticError
from tests.compare.records import group_of, record


def names(runs: Sequence[RunRecord]) -> list[list[str]]:
    return [[str(run.path) for run in group.runs] for group in group_runs(runs)]


def test_runs_that_differ_only_in_the_seed_are_a_group() -> None:
    runs = [
        *group_of("muon", [3.2, 3.3], settings={"optim.matrices": "muon"}),
        *group_of("adamw", [3.2, 3.3], settings={"optim.matrices": "adamw"}),
        record("late", [8.0, 3.1], seed=9, settings={"optim.matrices": "muon"}),
    ]
    assert names(runs) == [
        ["muon-seed1", "muon-seed2", "late"],
        ["adamw-seed1", "adamw-seed2"],
    ]


@pytest.mark.parametrize(
    ("field", "values", "groups"),
    [
        ("train.checkpoint_every", (100, 250), 1),
        ("train.log_to", (("tensorboard",), ()), 1),
        ("data.path", ("here", "there"), 1),  # the same data, by its fingerprint
        ("train.micro_batch", (4, 8), 2),
        ("train.steps", (100, 200), 2),
        ("optim.muon.lr", (0.01, 0.02), 2),
    ],
)
def test_bookkeeping_divides_no_group_and_all_else_does(
    field: str, values: tuple[Any, Any], groups: int
) -> None:
    runs = [record(f"run-{i}", [8, 3], seed=i, settings={field: v}) for i, v in enumerate(values)]
    assert len(group_runs(runs)) == groups
    assert list(differing_settings(group_runs(runs))) == ([field] if groups == 2 else [])


def test_a_repeated_seed_counts_once() -> None:
    runs = [record(name, [8, 3], seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    (group,) = group_runs(runs)
    assert [str(run.path) for run in group.counted] == ["a", "c"]
    assert [str(run.path) for run in group.repeated] == ["b"]


def test_only_what_differs_is_listed() -> None:
    base = {"model.width": 64, "optim.matrices": "muon", "optim.muon.lr": 0.02}
    runs = [
        record("one", [8, 3], settings=base),
        record("two", [8, 3], settings={**base, "optim.matrices": "adamw"}),
        record("log", [8, 3], settings={}, source="llm.c"),
    ]
    runs[2] = replace(runs[2], settings={})
    assert differing_settings(group_runs(runs)) == {"optim.matrices": ["muon", "adamw", None]}


@pytest.mark.parametrize(
    ("paths", "label"),
    [
        (["runs/muon-seed1", "runs/muon-seed2"], "muon"),
        (["muon_s1", "muon_s2", "muon_s10"], "muon"),
        (["run10", "run11"], "run"),
        (["lr0.02-s1", "lr0.02-s2"], "lr0.02"),
        (["gpt2-a", "gpt2-b"], "gpt2"),
        (["muon.lr=0.02,seed=9", "muon.lr=0.02,seed=10"], "muon.lr=0.02"),
        (["adams1", "adams2"], "adams"),
        (["muon", "muon-2"], "muon"),
        (["only-1"], "only-1"),
        (["x", "y"], "laptop"),  # the recipe
    ],
)
def test_a_group_is_called_what_its_names_have_in_common(paths: list[str], label: str) -> None:
    runs = [record(path, [8, 3], seed=i) for i, path in enumerate(paths)]
    assert [group.label for group in group_runs(runs)] == [label]


def test_groups_of_the_same_names_are_told_apart_by_what_differs() -> None:
    runs = [
        record(f"laptop-{i}", [8, 3], seed=i % 2, settings={"optim.matrices": matrices})
        for i, matrices in enumerate(("muon", "muon", "adamw", "adamw"))
    ]
    labels = [group.label for group in group_runs(runs)]
    assert labels == ["matrices=muon", "matrices=adamw"]
    begun = {"init_from.run": "first", "init_from.at_step": 9, "init_from.checkpoint": "ab"}
    drawn = dict.fromkeys(begun)
    told = [
        record(f"a-{i}", [8, 3], seed=i % 2, settings={**(drawn if i < 2 else begun), "a.b": i < 2})
        for i in range(4)
    ]
    labels = [group.label for group in group_runs(told)]
    assert labels == ["b=True", "init_from=first b=False"]
    other = [replace(run, path=Path("a") / str(i) / "run") for i, run in enumerate(runs[1:3])]
    assert len({group.label for group in group_runs(other)}) == 2


ONE = DatasetIdentity(fingerprint="a" * 64, described=("here",), eval_tokens=512)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(ONE, fingerprint="b" * 64), "losses on different data or of different tokenizers"),
        (DatasetIdentity(None, ("there",), 512), "different data"),
        (replace(ONE, eval_tokens=1024), "validates on 512 tokens and other on 1,024"),
    ],
)
def test_losses_on_other_data_do_not_compare(other: DatasetIdentity, message: str) -> None:
    runs = [record("one", [8, 3], data=ONE), record("other", [8, 3], data=other)]
    with pytest.raises(QuinticError, match=message) as caught:
        check_same_data(runs)
    assert "--force" in str(caught.value)
    assert len(group_runs(runs)) == (1 if other.eval_tokens == 1024 else 2)


@pytest.mark.parametrize(
    "other",
    [
        replace(ONE, described=("moved",)),  # the same by its fingerprint
        DatasetIdentity(None, ("here",), 512),
        DatasetIdentity(None, None, None),  # a log does not say
    ],
)
def test_losses_on_the_same_or_on_unknown_data_are_let_through(other: DatasetIdentity) -> None:
    check_same_data([record("one", [8, 3], data=ONE), record("other", [8, 3], data=other)])
