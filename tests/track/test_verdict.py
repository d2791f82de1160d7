"""The statistics of an attempt, and the verdict by the rules of docs/track.md."""

from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from quintic.track.reference import Target
from quintic.track.verdict import RunResult, judge, stand

TARGETS = (Target(1000, 1.6), Target(None, 1.5))
LOSSES = (1.58, 1.59, 1.585, 1.575, 1.582)


def runs(times: list[tuple[float, float]], losses: tuple[float, ...] = LOSSES) -> list[RunResult]:
    """Pairs of seconds, the reference's first, and the candidate's scores on the first target."""
    found = []
    for seed, (seconds, loss) in enumerate(zip(times, losses, strict=True), start=1):
        found.append(RunResult("reference", seed, seconds[0], seconds[0] + 9, (1.6, 1.5)))
        found.append(RunResult("candidate", seed, seconds[1], seconds[1] + 9, (loss, loss - 0.1)))
    return found


EVEN = [(100.0, 40.0), (101.0, 41.0), (99.0, 40.0), (100.0, 39.0), (103.0, 42.0)]


def verdict(results: list[RunResult], **options: Any) -> tuple[str, str]:
    found = judge(stand(results, TARGETS), TARGETS, **{"best": None, "commit": "0" * 40, **options})
    assert found.text.startswith(found.kind)
    return found.kind, found.text


def test_the_statistics_are_the_medians_and_the_t_test_that_they_are_called() -> None:
    s = stand(runs(EVEN), TARGETS)
    assert (s.seeds, s.pairs, s.agreeing, s.diverged) == (5, 5, 5, 0)
    assert (s.ratio, s.median_s, s.reference_median_s) == (0.4, 40.0, 100.0)
    assert s.low is not None and s.high is not None
    assert 0.38 < s.low < 0.4 < s.high < 0.42
    assert s.bits_per_byte == pytest.approx((1.5824, 1.4824))
    expected = stats.ttest_1samp(LOSSES, 1.6, alternative="less").pvalue
    assert s.p is not None
    assert s.p[0] == pytest.approx(expected)


def test_a_record_has_five_seeds_and_pairs_below_the_target_and_the_standing_ratio() -> None:
    assert verdict(runs(EVEN)) == ("record", "record")
    assert verdict(runs(EVEN), best=0.5, commit=None)[0] == "record"
    # Its own ratio would be enough, and the end of its interval is not.
    high = stand(runs(EVEN), TARGETS).high
    assert verdict(runs(EVEN), best=0.402) == (
        "no record",
        f"no record: its ratio may be as high as {high:.3f}, and the record stands at 0.402",
    )
    assert verdict(runs(EVEN), commit="abc+") == (
        "not decided",
        "not decided: the sources have changes that no commit holds: commit them and run it anew",
    )


def test_what_is_missing_is_said_with_the_option_that_asks_for_it() -> None:
    assert verdict(runs(EVEN[:3], LOSSES[:3])) == (
        "not decided",
        "not decided: a record has 5 seeds and these are 3: run it with --seeds 5; a record has 5 "
        "pairs and these are 3: run it with --pairs 5",
    )
    kind, text = verdict(runs(EVEN, (1.50, 1.62, 1.60, 1.63, 1.61)))
    assert kind == "not decided"
    assert "on the first 1,000 held-out bytes and must be below 0.01: run it with --seeds" in text
    assert verdict([]) == (
        "not decided",
        "not decided: a record has 5 seeds and these are 0: run it with --seeds 5; no pair has "
        "finished",
    )


def test_pairs_that_disagree_ask_for_more_pairs_until_five_agree() -> None:
    busy = [*EVEN[:4], (100.0, 90.0)]
    kind, text = verdict(runs(busy))
    assert (kind, text) == (
        "not decided",
        "not decided: 1 of 5 pairs lie more than 10% from the median ratio, as on a machine that "
        "does other work: quieten it and run it with --pairs 6",
    )
    more = runs([*busy, (100.0, 40.0)], (*LOSSES, 1.58))
    assert verdict(more)[0] == "record"


def test_a_mean_above_the_target_or_a_diverged_seed_is_no_record() -> None:
    high = tuple(loss + 0.1 for loss in LOSSES)
    assert verdict(runs(EVEN, high)) == (
        "no record",
        "no record: the mean of 1.6824 bits per byte on the first 1,000 held-out bytes is not below"
        " 1.6; the mean of 1.5824 bits per byte on all held-out bytes is not below 1.5",
    )
    found = runs(EVEN)
    found[1] = replace(found[1], bits_per_byte=None, train_s=None, diverged="the loss is nan")
    assert verdict(found)[1].startswith("no record: 1 of 5 seeds diverged")
    assert stand(found, TARGETS).pairs == 4
