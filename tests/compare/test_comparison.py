"""Losses, what it takes to reach a target, and the sentences that say what follows."""

import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from quintic.compare.comparison import Comparison, compare
from quintic.compare.conclusions import conclusions
from quintic.compare.record import SEED, Axis, DatasetIdentity, RunRecord
from quintic.compare.statistics import (
    below_target,
    difference,
    ratio,
)
from quintic.compare.table import results_table
from quintic.errors import QuinticError
from tests.compare.records import STEP_S, STEP_TOKENS, group_of, record

MUON = group_of("muon", [3.20, 3.21, 3.19], settings={"optim.matrices": "muon"})
ADAMW = group_of("adamw", [3.40, 3.42, 3.41], settings={"optim.matrices": "adamw"})
BY_WORK: tuple[Axis, ...] = ("tokens", "flops")


def said(comparison: Comparison) -> str:
    return "\n".join(conclusions(comparison))


def text_of(
    runs: Sequence[RunRecord], target: float | None = None, *, axis: Axis = "tokens"
) -> str:
    return said(compare(runs, target=target, axis=axis))


def test_the_target_is_reached_on_a_line_between_two_validations() -> None:
    run = record("run", [8.0, 5.0, 4.0, 4.5, 3.0])
    # From 8 at step 0 to 5 at step 10; then 4 and 4.5, which rises, are one place: 4.25 at step 25.
    assert run.reached(6.5, "steps") == pytest.approx(5)
    assert run.reached(4.5, "steps") == pytest.approx(20)
    assert run.reached(4.5, "tokens") == pytest.approx(20 * STEP_TOKENS)
    assert run.reached(4.5, "seconds") == pytest.approx(20 * STEP_S)
    assert run.reached(4.0, "steps") == pytest.approx(28)  # the first 4.0, at 20, was early by luck
    assert run.reached(3.0, "steps") == 40
    assert run.reached(9.0, "steps") == 0
    assert run.reached(2.999, "steps") is None
    # What follows the lowest loss, such as overfitting, takes nothing back.
    risen = record("risen", [8.0, 5.0, 4.0, 4.5, 5.0])
    assert risen.reached(4.2, "steps") == pytest.approx(18)
    assert risen.reached(4.0, "steps") == 20


def first_at_or_below(run: RunRecord, target: float) -> float:
    """The first crossing on a line between validations, as one would naively take it."""
    pairs = itertools.pairwise(run.validations)
    before, after = next((a, b) for a, b in pairs if b.loss <= target)
    share = (before.loss - target) / (before.loss - after.loss)
    return before.steps + share * (after.steps - before.steps)


@pytest.mark.parametrize(
    ("every", "bias", "first_bias"), [(10, 5, -70), (50, 5, -20), (250, 10, None)]
)
def test_frequent_noisy_validations_bias_the_target_by_little(
    every: int, bias: float, first_bias: float | None
) -> None:
    """The loss falls by 0.00026 a step at the target, the noise of 0.02 is worth 77 steps. In the
    mean of 500 runs the first loss at the target comes 75 steps early where every 10th is
    validated, so that two equal configs differ by how often they look; `reached` is less than 5
    off up to every 50 and less than 10 at every 250, where the line lies above the curve."""
    draws, target, end = random.Random(0), 3.8, 3000
    steps = range(0, end + 1, every)
    curve = [3 + 7 * (1 + step / 50) ** -0.6 for step in steps]
    truth = 50 * ((7 / (target - 3)) ** (1 / 0.6) - 1)
    found, first = [], []
    for _ in range(500):
        run = record("run", [loss + draws.gauss(0, 0.02) for loss in curve], every=every)
        found.append((run.reached(target, "steps") or 0) - truth)
        first.append(first_at_or_below(run, target) - truth)
    assert abs(statistics.fmean(found)) < bias
    assert statistics.stdev(found) <= statistics.stdev(first)
    if first_bias is not None:
        assert statistics.fmean(first) < first_bias


def test_unequal_intervals_where_the_target_is_reached_are_noted() -> None:
    def notes(target: float | None, every: int) -> list[str]:
        other = record("other", [8.0, 5.0, 3.0], seed=2, every=every)
        found = compare([record("one", [8.0, 4.0, 3.0]), other], target=target)
        return [note for note in found.notes if "validate every" in note]

    assert notes(3.5, 10) == notes(None, 40) == notes(2.5, 40) == []
    assert notes(3.5, 40)[0].startswith(
        "the runs validate every 10 to 40 steps where they come to 3.5"
    )


def test_a_group_is_compared_with_the_first_in_loss_and_in_what_it_took() -> None:
    comparison = compare([*ADAMW, *MUON], target=3.5)
    adamw, muon = comparison.results
    finals = [3.20, 3.21, 3.19]
    assert muon.final_losses == tuple(finals)
    assert muon.difference_to_first == difference(finals, [3.40, 3.42, 3.41])
    assert muon.below_target == below_target(finals, 3.5)
    steps = {
        "adamw": [run.reached(3.5, "steps") or 0 for run in ADAMW],
        "muon": [run.reached(3.5, "steps") or 0 for run in MUON],
    }
    assert muon.to_target["steps"].ratio == ratio(steps["muon"], steps["adamw"])
    assert muon.to_target["steps"].mean == pytest.approx(sum(steps["muon"]) / 3)
    assert adamw.difference_to_first is None
    assert adamw.to_target["steps"].ratio is None
    assert comparison.settings == {"optim.matrices": ["adamw", "muon"]}
    assert not comparison.notes


def test_the_curve_of_a_group_is_the_mean_where_all_have_a_validation() -> None:
    longer = record("c", [8.0, 5.0, 3.0], seed=3)
    runs = [
        record("a", [8.2, 5.2], seed=1, steps_planned=20),
        record("b", [8.0, 5.1], seed=2, steps_planned=20),
        longer,
    ]
    (result,) = compare(runs).results
    assert [point.steps for point in result.curve] == [0, 10]
    assert result.curve[1].mean == pytest.approx(5.1)
    assert (result.curve[1].low, result.curve[1].high) == (5.0, 5.2)
    assert result.final_losses == (3.0,)


def test_evidence_for_a_difference_is_called_so() -> None:
    text = text_of([*ADAMW, *MUON], 3.5)
    assert "muon: the mean of 3 runs is 3.2000 ± 0.0058, at or below 3.5" in text
    assert "significant at 0.01, as the speedrun's rules ask" in text
    assert "the evidence supports that its final loss is lower" in text
    assert "muon takes 0." in text
    assert "the evidence supports that it takes fewer" in text


def test_what_the_numbers_do_not_show_is_not_claimed() -> None:
    wide = group_of("wide", [3.1, 3.6, 3.3], settings={"optim.matrices": "muon"})
    text = text_of([*ADAMW, *wide], 3.5)
    assert "not significant at 0.01. If mean and spread stay as they are," in text
    assert "at 0.01 the evidence does not support a difference; if means and spreads stay" in text
    assert "supports that" not in text.replace("does not support", "").replace("adamw: ", "")


def test_the_runs_still_needed_are_those_beyond_the_ones_there() -> None:
    finals = [3.2791, 3.2783, 3.2802, 3.2795]
    needed = below_target(finals, 3.28).runs_needed
    assert needed is not None
    text = text_of(group_of("run", finals), 3.28)
    assert (
        f"{needed - 4} more runs, {needed} in all, there is a chance of at least 80% to be" in text
    )


def test_a_mean_above_the_target_asks_for_no_further_runs() -> None:
    text = text_of(ADAMW, 3.3)
    assert "above 3.3, one-sided t-test p = 1: the evidence does not support" in text
    assert "more runs" not in text


def test_one_run_each_supports_no_claim() -> None:
    text = text_of([ADAMW[0], MUON[0]], 3.5)
    assert "ends 0.2000 lower than adamw-seed1, with one run each" in text
    assert "so the evidence supports no claim" in text
    assert "in one run, which has no spread to test with" in text
    assert "Of one run the ratio has no uncertainty to state" in text
    assert "several seeds" in text
    assert "p =" not in text


def test_one_run_alone_is_shown_and_compared_with_nothing() -> None:
    comparison = compare([MUON[0]], target=3.5)
    assert comparison.results[0].final_losses == (3.20,)
    assert "This is one run: there is nothing to compare it with." in said(comparison)
    assert "This is one group" in text_of(MUON)


def test_a_target_that_is_never_reached_gives_no_ratio() -> None:
    comparison = compare([*ADAMW, *MUON], target=3.3)
    assert comparison.results[1].to_target["tokens"].ratio is None
    assert comparison.results[1].to_target["tokens"].mean is not None
    text = said(comparison)
    assert (
        "No ratio of tokens between muon and adamw: adamw does not reach 3.3, its lowest loss is "
        "3.4000." in text
    )
    assert "takes" not in text


def test_a_group_of_which_some_reach_the_target_has_no_mean_to_reach_it() -> None:
    comparison = compare([*ADAMW, *MUON], target=3.195)
    reach = comparison.results[1].to_target["tokens"]
    assert len(reach.values) == 1
    assert reach.mean is None
    assert reach.ratio is None
    assert "1 of the 3 runs of muon reaches 3.195, and adamw" in said(comparison)


def test_a_target_above_the_first_loss_gives_no_ratio() -> None:
    assert "the target is reached before the first step" in text_of([*ADAMW, *MUON], 9.0)


def test_a_run_that_diverged_is_not_left_out_of_a_mean_silently() -> None:
    lost = replace(MUON[1], diverged_at=20, validations=MUON[1].validations[:2])
    comparison = compare([*ADAMW, MUON[0], lost, MUON[2]], target=3.5)
    muon = comparison.results[1]
    assert muon.summary is None
    assert muon.below_target is None
    assert muon.difference_to_first is None
    text = said(comparison)
    assert "1 of 3 runs diverged and has no final loss, so nothing is tested against 3.5" in text
    assert "muon against adamw: 1 of 3 runs of muon diverged" in text
    assert comparison.notes == ("muon-seed2 diverged: its loss is not finite at step 20",)
    # Nor where the reference diverged.
    assert "of muon diverged" in text_of([MUON[0], lost, MUON[2], *ADAMW])


def test_a_run_that_diverged_before_any_validation_is_shown() -> None:
    lost = replace(MUON[0], diverged_at=0, validations=())
    comparison = compare([lost, *ADAMW], target=3.5)
    assert comparison.results[0].curve == ()
    text = said(comparison)
    assert "does not reach 3.5." in text
    assert "muon-seed1: the one run diverged and has no final loss" in text
    assert results_table(comparison).rows[0][3] == "diverged"
    both = [replace(run, diverged_at=20) for run in MUON[:2]]
    assert "muon: both runs diverged and have no final loss" in text_of(both, 3.5)


def test_why_there_is_no_ratio_is_said_of_both_sides() -> None:
    text = text_of([*ADAMW, *MUON], 3.0)
    assert text.count("No ratio") == 1
    (line,) = (line for line in text.splitlines() if "No ratio" in line)
    assert "adamw does not reach 3, its lowest loss is" in line
    assert ", and " in line
    assert "muon does not reach 3, its lowest loss is 3.19" in line


def test_a_run_that_has_learned_nothing_is_noted() -> None:
    guesses = group_of("high", [4.852, 4.86, 4.7], settings={"model.vocab_size": 128})
    assert compare(guesses).notes == (
        "of 2 of 3 runs of high, the loss is no better than that of guessing among all 128 tokens, "
        "4.8520",
    )


def test_a_loss_that_is_no_number_amid_others_is_noted() -> None:
    holed = replace(MUON[0], gaps=(10, 15))
    (note,) = compare([holed, *MUON[1:]]).notes
    assert "muon-seed1 has a loss that is not a number at step 10, 2 in all" in note


def test_an_unfinished_run_has_no_final_loss_and_the_others_count() -> None:
    begun = replace(MUON[1], steps_planned=1000)
    comparison = compare([MUON[0], begun, MUON[2]], target=3.5)
    assert comparison.results[0].final_losses == (3.20, 3.19)
    assert comparison.notes == (
        "muon-seed2 is unfinished, 20 of 1,000 steps: it has no final loss",
    )
    text = text_of([*ADAMW, begun], 3.5)
    assert "the one run of muon-seed2 has not come to its end, so nothing is tested" in text


def test_the_rules_of_track_3_stand_beside_the_tests_for_logs_of_one_length() -> None:
    def logs(name: str, finals: Sequence[float]) -> list[RunRecord]:
        runs = group_of(name, finals, source="modded-nanogpt", program_sha256=name)
        return [replace(run, settings={}) for run in runs]

    old, new = logs("old", [3.279, 3.277, 3.278, 3.278]), logs("new", [3.276, 3.275])
    found = compare([*old, *new], target=3.28)
    assert [r.track3_margin for r in found.results] == pytest.approx([0.004, 0.0045 * 2**0.5])
    margin = 0.0025 / (1 / 4 + 1 / 2) ** 0.5
    assert found.results[1].track3_margin_to_first == pytest.approx(margin)
    text = said(found)
    assert "new passes the rule of Track 3, (3.28 - mean) sqrt(2) >= 0.004, with 0.00636;" in text
    assert f"does not show new to be better than old, with {margin:.5f} of the 0.004" in text
    assert "Track 3" not in text_of([*old, *new], 3.3)
    assert "Track 3" not in text_of(MUON, 3.28)


def test_copies_are_no_evidence() -> None:
    with pytest.raises(QuinticError, match="are the same run"):
        compare([MUON[0], MUON[0]])
    copied = [replace(MUON[0], path=MUON[0].path / str(i)) for i in range(3)]
    comparison = compare(copied, target=3.5)
    assert comparison.results[0].final_losses == (3.20,)
    assert len(comparison.notes) == 2
    copy = "muon-seed1/1 has every loss of muon-seed1/0: a copy does not count"
    assert comparison.notes[0] == copy
    # With other seeds, as a config copied by hand would have it, or without, as a log.
    for seeds in ([1, 2, 3], [None, None, None]):
        of_one = [
            replace(run, validations=MUON[0].validations, settings={**run.settings, SEED: seed})
            for run, seed in zip(MUON, seeds, strict=True)
        ]
        comparison = compare(of_one, target=3.5)
        assert comparison.results[0].final_losses == (3.20,)
        assert [str(run.path) for run in comparison.results[0].group.counted] == ["muon-seed1"]
        assert comparison.notes == tuple(
            f"muon-seed{number} has every loss of muon-seed1: a copy does not count"
            for number in (2, 3)
        )
    same = group_of("muon", [3.2, 3.2, 3.2])
    assert "are they one run, copied?" in text_of(same, 3.5)
    others = group_of("adamw", [3.4, 3.4, 3.4], settings={"optim.matrices": "adamw"})
    assert "there is no spread to test with" in text_of([*same, *others])


def test_a_second_run_of_a_seed_is_noted_with_the_first() -> None:
    again = replace(record("again", [8.0, 5.0, 3.1], seed=2), settings=MUON[1].settings)
    (note,) = compare([*MUON, again]).notes
    assert note == "again repeats seed 2, of muon-seed2: the first run of a seed counts"


def test_the_run_that_its_checkpoints_confirm_counts_and_its_edited_copy_does_not() -> None:
    original = replace(MUON[0], confirmed=True)
    # Named first, and with the seed of another run.
    edited = replace(
        MUON[0], path=Path("edited"), settings={**MUON[0].settings, SEED: MUON[1].seed}
    )
    comparison = compare([edited, original, *MUON[1:]])
    assert comparison.results[0].group.counted == (original, *MUON[1:])
    assert comparison.notes == ("edited has every loss of muon-seed1: a copy does not count",)


def test_paired_holds_each_seed_against_the_same_seed() -> None:
    # All seeds gain about 0.02, and differ among themselves by more.
    finals, reference = {1: 3.30, 2: 3.401, 3: 3.2}, {4: 9.9, 3: 3.22, 1: 3.321, 2: 3.42}
    b = [record(f"b{s}", [8.0, loss], seed=s, settings={"x": "b"}) for s, loss in finals.items()]
    a = [record(f"a{s}", [8.0, loss], seed=s, settings={"x": "a"}) for s, loss in reference.items()]
    assert "does not support a difference" in text_of([*a, *b])
    found = compare([*a, *b], target=3.5, paired=True)
    expected = difference([3.30, 3.401, 3.2], [3.321, 3.42, 3.22], paired=True)
    assert found.results[1].difference_to_first == expected
    assert "3 seeds, paired, 95% interval 0.0175 to 0.0225 lower, Student's test" in said(found)
    assert "supports that its final loss is lower" in said(found)
    assert found.to_dict()["paired"]
    # Seed 4 has not reached the target, so there is no ratio; without it pairs give one.
    assert found.results[1].to_target["steps"].ratio is None
    kept = compare([*a[1:], *b], target=3.5, paired=True).results[1].to_target["steps"].ratio
    order = [next(run for run in a if run.seed == seed) for seed in (1, 2, 3)]
    assert kept == ratio(
        [run.reached(3.5, "steps") or 0 for run in b],
        [run.reached(3.5, "steps") or 0 for run in order],
        paired=True,
    )


def test_paired_needs_seeds_that_both_have() -> None:
    later = [replace(run, settings={**run.settings, "train.seed": 9}) for run in MUON[:1]]
    with pytest.raises(QuinticError, match=r"^--paired compares runs of the same seed, and"):
        compare([*ADAMW, *later], paired=True)
    one = [ADAMW[0], *MUON[:1]]
    assert "one seed that both have" in said(compare(one, paired=True))
    unfinished = replace(MUON[0], steps_planned=1000)
    text = said(compare([ADAMW[0], unfinished, MUON[1]], paired=True))
    assert "no seed came to its end in both" in text


def test_with_more_groups_each_is_held_against_a_stricter_level() -> None:
    # p of b against a is between 0.01 / 2 and 0.01.
    b = group_of("b", [3.361, 3.363, 3.373], settings={"x": "b"})
    a = group_of("a", [3.40, 3.42, 3.41], settings={"x": "a"})
    c = group_of("c", [3.41, 3.40, 3.42], settings={"x": "c"})
    p = difference([3.361, 3.363, 3.373], [3.40, 3.42, 3.41]).p
    assert p is not None
    assert 0.005 < p < 0.01
    assert "the evidence supports that its final loss is lower" in text_of([*a, *b])
    text = text_of([*a, *b, *c])
    assert "supports that" not in text
    assert "each p is held against 0.01 / 2 = 0.005" in text


def test_losses_on_other_data_are_refused_and_forced_ones_are_not_tested() -> None:
    other = [replace(run, data=DatasetIdentity("e" * 64, ("other",), 512)) for run in MUON]
    with pytest.raises(QuinticError, match="do not compare"):
        compare([*ADAMW, *other])
    comparison = compare([*ADAMW, *other], target=3.5, force=True)
    assert not comparison.comparable
    assert comparison.results[1].difference_to_first is None
    assert comparison.results[1].to_target["tokens"].ratio is None
    assert "because of --force" in comparison.notes[0]
    text = said(comparison)
    assert "Between the groups nothing is tested: their data differ." in text
    assert "lower" not in text


def test_what_makes_seconds_and_losses_doubtful_is_noted() -> None:
    log = replace(MUON[0], source="llm.c", settings={}, data=DatasetIdentity(), device=None)
    notes = compare([*ADAMW, log]).notes
    assert any("on which data muon-seed1 was trained is unknown" in note for note in notes)
    assert any("the trainers count them differently" in note for note in notes)
    devices = [replace(run, device=f"device {run.seed}") for run in MUON[:2]]
    assert (
        "seconds do not compare, the devices differ: device 1; device 2" in compare(devices).notes
    )
    commits = [replace(run, commit=str(run.seed) * 40) for run in MUON[:2]]
    assert any("different commits: 1111111111, 2222222222" in n for n in compare(commits).notes)


def test_an_axis_that_a_run_does_not_know_is_refused_with_the_way_out() -> None:
    validations = tuple(replace(v, tokens=None, seconds=None) for v in MUON[0].validations)
    log = replace(MUON[0], validations=validations)
    with pytest.raises(QuinticError, match=r"give --batch-tokens .* or --x steps"):
        compare([log])
    with pytest.raises(QuinticError, match="has no times: give --x steps"):
        compare([log], axis="seconds")
    comparison = compare([log, *ADAMW], target=3.5, axis="steps")
    assert set(comparison.results[0].to_target) == {"steps"}
    assert "times the steps of" in said(comparison)
    assert comparison.results[1].to_target["tokens"].ratio is None


def sizes() -> list[RunRecord]:
    """A small model, and one of which a token costs twice as much."""
    small = group_of("small", [3.40, 3.42], settings={"model.width": 64}, flops_per_token=1e6)
    large = group_of("large", [3.20, 3.21], settings={"model.width": 128}, flops_per_token=2e6)
    return [*small, *large]


def test_models_of_different_sizes_compare_by_flops() -> None:
    tokens, flops = (compare(sizes(), target=3.5, axis=axis) for axis in BY_WORK)
    for place, each in enumerate((1e6, 2e6)):
        to_target = flops.results[place].to_target
        assert to_target["flops"].mean == pytest.approx(each * (to_target["tokens"].mean or 0))
        assert [p.flops for p in flops.results[place].curve] == [0, 1e4 * each, 2e4 * each]
    ratio_of_tokens, ratio_of_flops = (flops.results[1].to_target[axis].ratio for axis in BY_WORK)
    assert ratio_of_tokens is not None
    assert ratio_of_flops is not None
    assert ratio_of_flops.value == pytest.approx(2 * ratio_of_tokens.value)
    assert f"large takes {ratio_of_flops.value:.3f} times the FLOPs of small" in said(flops)
    assert "times the tokens of small" in said(tokens)
    assert "FLOPs to 3.5" in results_table(tokens).header, "the sizes differ"
    assert any("--x flops compares by FLOPs" in note for note in tokens.notes)
    assert not any("--x flops" in note for note in flops.notes)
    without_target = compare(sizes(), axis="flops")
    table = results_table(without_target)
    assert [row[table.header.index("FLOPs")] for row in table.rows] == ["2e+10", "4e+10"]
    first, *_ = conclusions(without_target)
    assert "final losses, which are of unequal FLOPs: small 2e+10, large 4e+10." in first
    assert "unequal" not in said(flops)


def test_of_one_size_flops_say_what_tokens_say_and_stay_out_of_the_table() -> None:
    runs = [
        *group_of("adamw", [3.40, 3.42], settings={"train.steps": 1}, flops_per_token=1e6),
        *group_of("muon", [3.20, 3.21], settings={"train.steps": 2}, flops_per_token=1.001e6),
    ]
    comparison = compare(runs, target=3.5)
    assert not {"FLOPs", "FLOPs to 3.5"} & set(results_table(comparison).header)
    assert not any("--x flops" in note for note in comparison.notes)
    asked = compare(runs, target=3.5, axis="flops")
    assert {"FLOPs", "FLOPs to 3.5"} <= set(results_table(asked).header)


def test_a_run_whose_model_is_not_known_has_no_flops() -> None:
    with pytest.raises(QuinticError) as caught:
        compare([*sizes(), MUON[0]], axis="flops")
    assert str(caught.value) == (
        "muon-seed1 does not say the FLOPs of a token, since its model is not known: give --x "
        "tokens or --x steps"
    )
    assert "flops" not in compare([*sizes(), MUON[0]], target=3.5).results[2].to_target


@pytest.mark.parametrize("target", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_target_that_is_no_loss_is_refused(target: float) -> None:
    with pytest.raises(QuinticError, match=r"--target is .*: it must be a positive loss"):
        compare(MUON, target=target)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(QuinticError, match="needs at least one run"):
        compare([])
