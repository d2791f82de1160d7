"""Which length of run ends where another run ends, and the interval of the ratio."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from quintic.compare.comparison import compare
from quintic.compare.conclusions import conclusions
from quintic.compare.matched_loss import steps_to_end_at
from quintic.compare.record import RunRecord
from tests.compare.records import group_of


def runs_of(lengths: dict[int, list[float]], reference: list[float]) -> list[RunRecord]:
    """Muon for 20 steps with these final losses over seeds, and AdamW for several lengths."""
    runs = group_of("muon", reference, settings={"optim.matrices": "muon", "train.steps": 20})
    for steps, finals in lengths.items():
        settings = {"optim.matrices": "adamw", "train.steps": steps, "train.eval_every": steps // 2}
        runs += group_of(f"adamw-{steps}", finals, every=steps // 2, settings=settings)
    return runs


def test_between_two_lengths_the_loss_falls_in_a_line_over_the_logarithm_of_the_steps() -> None:
    ends = {100: 4.0, 400: 3.0, 1600: 2.5}
    assert steps_to_end_at(4.0, ends) == 100
    assert steps_to_end_at(3.5, ends) == pytest.approx(200)
    assert steps_to_end_at(2.75, ends) == pytest.approx(800)
    assert steps_to_end_at(2.5, ends) == pytest.approx(1600)
    assert steps_to_end_at(4.1, ends) is None
    assert steps_to_end_at(2.4, ends) is None
    assert steps_to_end_at(3.0, {100: 3.0, 200: 3.0}) == 100


def test_the_ratio_is_the_mean_over_seeds_with_the_interval_of_a_paired_t_test() -> None:
    lengths = {20: [4.0, 4.1, 4.2], 80: [3.0, 3.2, 3.0]}
    reference = [3.5, 3.5, 3.4]
    (found,) = compare(runs_of(lengths, reference)).matched
    shares = [
        (one - wanted) / (one - other)
        for one, other, wanted in zip(lengths[20], lengths[80], reference, strict=True)
    ]
    logs = [share * math.log(4) for share in shares]
    interval = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    assert found.ratio is not None and found.ratio.low is not None and found.ratio.high is not None
    assert found.ratio.value == pytest.approx(math.exp(sum(logs) / 3))
    assert found.steps == pytest.approx(20 * found.ratio.value)
    assert found.ratio.low == pytest.approx(math.exp(interval.low))
    assert found.ratio.high == pytest.approx(math.exp(interval.high))
    assert found.ratio.p == pytest.approx(stats.ttest_1samp(logs, 0.0).pvalue)


def test_a_run_that_stopped_early_has_no_length() -> None:
    runs = runs_of({20: [4.0], 80: [3.0]}, [3.5])
    for place in (0, 1):
        early = replace(runs[place], stopped_at=10, stopped_early="it was at its target")
        assert compare([early if run is runs[place] else run for run in runs]).matched == ()


def test_the_sentence_names_the_lengths_the_ratio_and_its_interval() -> None:
    comparison = compare(runs_of({20: [4.0, 4.1], 80: [3.0, 3.2]}, [3.5, 3.6]))
    (said,) = (s for s in conclusions(comparison) if "one config for" in s)
    assert "20 to 80 steps, against muon (20 steps): a run of" in said
    assert "over 2 seeds, paired" in said
    assert comparison.to_dict()["lengths"][0]["reference"] == "muon"


def test_against_a_model_of_another_size_the_ratio_is_said_in_flops_too() -> None:
    per_token = {"muon": 2e6, "adamw": 3e6}
    runs = [
        replace(
            run,
            validations=tuple(
                replace(v, flops=per_token[run.path.name.split("-")[0]] * (v.tokens or 0))
                for v in run.validations
            ),
        )
        for run in runs_of({20: [4.0, 4.1], 80: [3.0, 3.2]}, [3.5, 3.6])
    ]
    comparison = compare(runs)
    (matched,) = comparison.matched
    assert matched.flops_of_step == pytest.approx(1.5)
    assert matched.ratio is not None
    (said,) = (s for s in conclusions(comparison) if "one config for" in s)
    assert said.endswith(f", which are {1.5 * matched.ratio.value:.2f} times the FLOPs.")
    (same,) = compare(runs_of({20: [4.0], 80: [3.0]}, [3.5])).matched
    assert same.flops_of_step is None


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ([2.9, 3.5], "of 1 of 2 seeds even the longest run ends above it"),
        ([4.5, 4.5], "of 2 of 2 seeds even the shortest run ends below it"),
    ],
)
def test_a_loss_outside_the_lengths_gives_no_ratio_and_is_said(
    reference: list[float], words: str
) -> None:
    comparison = compare(runs_of({20: [4.0, 4.1], 80: [3.0, 3.2]}, reference))
    assert comparison.matched[0].ratio is None
    (said,) = (s for s in conclusions(comparison) if "one config for" in s)
    assert words in said and "no ratio of lengths" in said


def test_one_seed_gives_a_ratio_without_an_interval() -> None:
    comparison = compare(runs_of({20: [4.0], 80: [3.0]}, [3.5]))
    ratio = comparison.matched[0].ratio
    assert ratio is not None and ratio.value == pytest.approx(2) and ratio.low is None
    assert any("from one seed, so without an interval" in s for s in conclusions(comparison))


def test_seeds_that_one_side_lacks_do_not_count() -> None:
    (found,) = compare(runs_of({20: [4.0, 4.1], 80: [3.0]}, [3.5, 3.6])).matched
    assert found.pairs == 1


def test_configs_that_differ_in_more_than_their_length_are_no_series() -> None:
    runs = [
        *group_of("a", [4.0], settings={"train.steps": 20, "optim.adamw.lr": 0.1}),
        *group_of("b", [3.0], every=40, settings={"train.steps": 80, "optim.adamw.lr": 0.2}),
        *group_of("muon", [3.5], settings={"train.steps": 20, "optim.matrices": "muon"}),
    ]
    assert compare(runs).matched == ()
