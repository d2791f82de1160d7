"""Means over seeds, what counts as best, and when a sweep should go on."""

import statistics

import pytest

from quintic.cli.grid import parse_vary
from quintic.recipes import get_recipe
from quintic.sweep.plan import make_plan
from quintic.sweep.record import Outcome
from quintic.sweep.summary import SweepSummary, summarize_sweep, table

DIVERGED, FAILED, UNFINISHED = Outcome("diverged"), Outcome("failed"), Outcome()
LAYERS = (1, 2, 3, 4)


def found(*losses: list[float | Outcome]) -> SweepSummary:
    """A sweep over as many numbers of layers, each with its losses or outcomes by seed."""
    values = ",".join(str(n) for n in LAYERS[: len(losses)])
    plan = make_plan(
        get_recipe("laptop-plain"), [parse_vary(f"model.layers={values}")], seeds=len(losses[0])
    )
    outcomes = {}
    for run in plan.runs:
        known = losses[run.values["model.layers"] - 1][run.seed - 1337]
        outcomes[run.name] = known if isinstance(known, Outcome) else Outcome("finished", known)
    return summarize_sweep(plan, outcomes)


def layers(sweep: SweepSummary) -> list[int]:
    return [combination.values["model.layers"] for combination in sweep.ranked]


def test_the_table_has_mean_and_standard_error_over_seeds_and_the_best_first() -> None:
    sweep = found([3.5, 3.7, 3.3], [3.1, 3.2, 3.15], [3.6, 3.6, 3.6])
    error = statistics.stdev([3.1, 3.2, 3.15]) / 3**0.5
    assert table(sweep).rows[0] == ["2", f"3.1500 ± {error:.4f}", "3/3", "best"]
    assert layers(sweep) == [2, 1, 3]
    assert [row[-1] for row in table(sweep).rows] == ["best", "", ""]
    assert table(sweep).header == ["model.layers", "final loss", "seeds", "outcome"]
    assert table(found([3.5], [3.6])).rows[0] == ["1", "3.5000", "1/1", "best"], "no error of one"


def test_a_combination_is_best_only_with_all_its_seeds_and_none_diverged() -> None:
    sweep = found([3.5, 3.5], [1.0, DIVERGED], [2.0, FAILED], [DIVERGED, DIVERGED])
    assert sweep.best is not None
    assert layers(sweep) == [1, 3, 2, 4]
    assert [row[-1] for row in table(sweep).rows] == ["best", "1 failed", "1 diverged", "diverged"]
    assert table(sweep).rows[3][1:3] == ["–", "0/2"]


def test_a_combination_that_has_learned_nothing_is_marked_also_where_it_is_best() -> None:
    guesses = Outcome("finished", 7.63, "the loss is no better")
    assert [row[-1] for row in table(found([3.5, 3.5], [4.0, guesses])).rows] == [
        "best",
        "no better than guessing",
    ]
    assert table(found([guesses], [DIVERGED])).rows[0][-1] == "best, no better than guessing"


def test_without_a_whole_combination_there_is_no_best() -> None:
    for losses in ([[1.0, DIVERGED], [2.0, UNFINISHED]], [[DIVERGED], [DIVERGED]]):
        sweep = found(*losses)
        assert (sweep.best, sweep.edges, sweep.to_dict()) == (None, [], None)


def test_while_it_goes_on_the_leader_is_the_lowest_mean_so_far_of_what_has_not_diverged() -> None:
    sweep = found([3.5, 3.5], [3.0, UNFINISHED], [2.0, DIVERGED], [UNFINISHED, UNFINISHED])
    assert sweep.leader is not None
    assert sweep.leader.values["model.layers"] == 2
    assert found([UNFINISHED]).leader is None


@pytest.mark.parametrize(
    ("losses", "edge"),
    [
        ([3.0, 2.0, 3.0], None),
        ([1.0, 2.0, 3.0], "the best model.layers, 1, is the smallest tried"),
        ([3.0, 2.0, 1.0], "the best model.layers, 3, is the largest tried"),
        ([3.0, 2.0, DIVERGED], None),  # more was tried, and it diverged
        ([3.0, 2.0, UNFINISHED], "the best model.layers, 2, is the largest tried"),
        ([3.0, 2.0, FAILED], "the best model.layers, 2, is the largest tried"),
        ([3.0], None),  # nothing was varied
    ],
)
def test_a_best_on_the_edge_of_what_was_tried_is_said(
    losses: list[float | Outcome], edge: str | None
) -> None:
    assert found(*[[loss] for loss in losses]).edges == ([edge] if edge else [])


def test_values_without_an_order_have_no_edge() -> None:
    varied = [parse_vary("optim.muon.scale=rms,aspect"), parse_vary("optim.clip_norm=None,1,2")]
    plan = make_plan(get_recipe("laptop-plain"), varied)
    losses = {run.name: Outcome("finished", 1.0 + i) for i, run in enumerate(plan.runs)}
    sweep = summarize_sweep(plan, losses)
    assert sweep.best is not None
    assert dict(sweep.best.values) == {"optim.muon.scale": "rms", "optim.clip_norm": None}
    assert sweep.edges == []
