"""The tests are SciPy's, the speedrun's own example gives its p, and the promised rates hold."""

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from quintic.compare.statistics import (
    ALPHA,
    POWER,
    TRACK3_MARGIN,
    TRACK3_SIGMA,
    below_target,
    difference,
    level_of_each,
    power_below_target,
    power_of_difference,
    ratio,
    summarize,
    track3_margin,
    track3_pairwise_margin,
)

# The 80 losses of https://github.com/KellerJordan/modded-nanogpt, records/track_1_short,
# 2025-01-04_SoftCap/README.md, with which the rules show how to compute p. It prints p=0.0001, and
# (0.0019, 3.2791) as standard deviation and mean.
SOFTCAP = [
    *(3.2798, 3.2804, 3.2837, 3.2808, 3.2782, 3.2801, 3.283, 3.2825, 3.2777, 3.2769),
    *(3.2834, 3.2832, 3.2753, 3.2809, 3.2778, 3.2801, 3.2799, 3.2804, 3.2765, 3.2792),
    *(3.2786, 3.2792, 3.2801, 3.2762, 3.2803, 3.2784, 3.2792, 3.2791, 3.2769, 3.279),
    *(3.2784, 3.2775, 3.283, 3.2785, 3.2753, 3.2805, 3.2766, 3.2766, 3.2781, 3.2819),
    *(3.2754, 3.2827, 3.2803, 3.2784, 3.2802, 3.2794, 3.2765, 3.278, 3.2782, 3.278),
    *(3.2816, 3.279, 3.2771, 3.2791, 3.2768, 3.2781, 3.2794, 3.2798, 3.2785, 3.2804),
    *(3.2777, 3.2765, 3.2796, 3.278, 3.2803, 3.2793, 3.2793, 3.2788, 3.2797, 3.278),
    *(3.2799, 3.2813, 3.2803, 3.2768, 3.2803, 3.2796, 3.28, 3.2796, 3.2783, 3.278),
]

ONE = [3.2741, 3.2755, 3.2738, 3.2761, 3.2749]
OTHER = [3.3406, 3.3379, 3.3421]

DRAWS = 10_000


def test_the_example_of_the_speedruns_rules_gives_the_p_it_publishes() -> None:
    seen, test = summarize(SOFTCAP), below_target(SOFTCAP, 3.28)
    assert seen.count == 80
    assert seen.deviation is not None
    assert f"{seen.mean:.4f} {seen.deviation:.4f}" == "3.2791 0.0019"
    assert test.p is not None
    assert f"p={test.p:.4f}" == "p=0.0001"


def test_the_rules_of_track_3_give_the_numbers_of_their_examples() -> None:
    # https://github.com/KellerJordan/modded-nanogpt, records/track_3_optimization/README.md: 3.276
    # suffices for one run and 3.278 for four, a z-test with p < 0.001.
    assert track3_margin(3.276, 1) == pytest.approx(TRACK3_MARGIN)
    assert track3_margin(3.278, 4) == pytest.approx(TRACK3_MARGIN)
    assert stats.norm.sf(TRACK3_MARGIN / TRACK3_SIGMA) == pytest.approx(0.001, rel=0.05)
    # Its results 13 against 11, 13 against 8 (with the 16 runs that it puts there), 12 against 6.
    for mean, reference, runs, steps, published in (
        (3.2785, 3.2785, (10, 16), 15, "0.00167"),
        (3.2785, 3.2778, (10, 16), 40, "0.0027"),
        (3.2790, 3.2788, (20, 20), 50, "0.00648"),
    ):
        found = track3_pairwise_margin(mean, reference, runs=runs, steps_saved=steps)
        assert f"{found:.{len(published) - 2}f}" == published


def test_the_t_test_is_the_formula_of_student() -> None:
    # Without SciPy's test: t = (mean - target) / (deviation / sqrt n), and the area under Student's
    # density to its left, summed up.
    n, target = len(ONE), 3.2755
    t = (statistics.fmean(ONE) - target) / (statistics.stdev(ONE) / math.sqrt(n))
    freedom = n - 1
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    xs = np.linspace(-2000, t, 2_000_001)
    area = np.trapezoid(scale * (1 + xs**2 / freedom) ** (-(freedom + 1) / 2), xs)
    assert below_target(ONE, target).p == pytest.approx(float(area), rel=1e-4)
    assert summarize(ONE).error == pytest.approx(statistics.stdev(ONE) / math.sqrt(n))


@pytest.mark.parametrize("target", [3.27, 3.2749, 3.275, 3.28])
def test_below_target_is_scipys_one_sided_test(target: float) -> None:
    expected = stats.ttest_1samp(ONE, target, alternative="less").pvalue
    assert below_target(ONE, target).p == pytest.approx(float(expected))


def test_a_difference_is_scipys_welch_test_with_its_interval() -> None:
    found = difference(ONE, OTHER)
    expected = stats.ttest_ind(ONE, OTHER, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.value == pytest.approx(statistics.fmean(ONE) - statistics.fmean(OTHER))
    assert (found.p, found.low, found.high) == pytest.approx(
        (expected.pvalue, interval.low, interval.high)
    )
    # Not Student's, which would take the spreads as equal.
    assert found.p != pytest.approx(float(stats.ttest_ind(ONE, OTHER).pvalue), rel=0.01)


def test_a_difference_of_pairs_is_scipys_paired_test_with_its_interval() -> None:
    values, reference = [4.73, 4.74, 4.77], [4.76, 4.775, 4.79]
    found = difference(values, reference, paired=True)
    expected = stats.ttest_rel(values, reference)
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx(
        (expected.pvalue, interval.low, interval.high)
    )
    assert found.value == pytest.approx(-0.085 / 3)
    assert found.pairs == 3
    # What the seeds do to both alike is most of what Welch's test takes for noise.
    unpaired = difference(values, reference).p
    assert found.p is not None
    assert unpaired is not None
    assert found.p < 0.05 < unpaired
    assert difference([3.2], [3.3], paired=True).p is None
    assert difference([3.25, 3.5], [3.0, 3.25], paired=True).p is None


def test_a_ratio_turned_over_is_the_ratio_of_the_others() -> None:
    tokens, reference = [1.10e6, 1.15e6, 1.12e6], [1.66e6, 1.74e6, 1.69e6]
    found, inverse = ratio(tokens, reference), ratio(reference, tokens)
    assert found is not None
    assert inverse is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high < 1
    assert (1 / found.value, 1 / found.high, 1 / found.low) == pytest.approx(
        (inverse.value, inverse.low, inverse.high)
    )
    assert found.value == pytest.approx(stats.gmean(tokens) / stats.gmean(reference))


def test_one_value_or_no_spread_gives_no_p() -> None:
    assert summarize([3.2]).deviation is None
    assert below_target([3.2], 3.28).p is None
    assert below_target([3.2, 3.2, 3.2], 3.28).p is None
    assert difference([3.2], OTHER).p is None
    assert difference([3.2, 3.2], [3.3, 3.3]).p is None
    # Nor does a spread that is of the rounding of numbers.
    assert 3.4 - 3.3 != 3.3 - 3.2
    assert difference([3.4, 3.3], [3.3, 3.2], paired=True).p is None
    assert below_target([3.2, 3.2 + 1e-15], 3.28).p is None
    double = ratio([0.3, 0.7], [0.1, 0.7 / 3], paired=True)
    assert double is not None and double.p is None
    single = ratio([2.0], [4.0])
    assert single is not None
    assert (single.value, single.low, single.p) == (0.5, None, None)
    assert ratio([0.0, 1.0], [1.0, 2.0]) is None


@pytest.mark.filterwarnings("error")
def test_a_group_without_spread_beside_one_with_some_is_tested_without_a_warning() -> None:
    p = difference([3.2, 3.2], [3.3, 3.4]).p
    assert p == pytest.approx(float(stats.ttest_1samp([3.3, 3.4], 3.2).pvalue))


def rates(means: float, runs: int, seed: int) -> float:
    """Share of 10,000 experiments of so many runs that are significantly below the target 0."""
    losses = np.random.default_rng(seed).normal(means, 1.0, (DRAWS, runs))
    found = stats.ttest_1samp(losses, 0.0, axis=1, alternative="less").pvalue
    # The vectorised test is the one under test.
    for row in range(3):
        assert below_target(losses[row].tolist(), 0.0).p == pytest.approx(float(found[row]))
    return float(np.mean(found < ALPHA))


def tolerance(rate: float) -> float:
    """Four standard errors of a rate over the draws."""
    return 4 * math.sqrt(rate * (1 - rate) / DRAWS)


@pytest.mark.parametrize("runs", [2, 3, 10])
def test_a_mean_at_the_target_passes_in_one_of_a_hundred_experiments(runs: int) -> None:
    assert rates(0.0, runs, seed=runs) == pytest.approx(ALPHA, abs=tolerance(ALPHA))


@pytest.mark.parametrize(("effect", "runs"), [(0.5, 20), (1.0, 8), (1.5, 5), (2.5, 3), (15.0, 2)])
def test_the_power_is_the_share_of_experiments_that_find_the_effect(
    effect: float, runs: int
) -> None:
    power = power_below_target(effect, runs)
    assert 0.1 < power < 0.95
    assert rates(-effect, runs, seed=runs) == pytest.approx(power, abs=tolerance(power))


def welch_rate(
    effect: float, runs: tuple[int, int], spreads: tuple[float, float], level: float = ALPHA
) -> float:
    random = np.random.default_rng(runs[0])
    one = random.normal(0.0, spreads[0], (DRAWS, runs[0]))
    other = random.normal(effect, spreads[1], (DRAWS, runs[1]))
    found = stats.ttest_ind(one, other, axis=1, equal_var=False).pvalue
    for row in range(3):
        assert difference(one[row].tolist(), other[row].tolist()).p == pytest.approx(
            float(found[row])
        )
    return float(np.mean(found < level))


def test_equal_means_differ_in_at_most_one_of_a_hundred_experiments() -> None:
    # With few runs Welch's approximation errs to the safe side; with more it is close.
    assert welch_rate(0.0, (3, 3), (1.0, 1.0)) <= ALPHA + tolerance(ALPHA)
    assert welch_rate(0.0, (12, 9), (1.0, 3.0)) == pytest.approx(ALPHA, abs=2 * tolerance(ALPHA))


def power_between(
    effect: float, runs: int, spreads: tuple[float, float], level: float = ALPHA
) -> float:
    one, other = spreads[0] ** 2, spreads[1] ** 2
    return power_of_difference(
        effect / math.sqrt((one + other) / 2), runs, one / (one + other), level
    )


@pytest.mark.parametrize("level", [ALPHA, 0.05 / 3])
@pytest.mark.parametrize(
    ("runs", "effect", "spreads"),
    [
        (2, 8.0, (1.0, 1.0)),
        (2, 15.0, (0.4, 1.6)),
        (2, 30.0, (1.0, 0.01)),
        (3, 5.0, (1.0, 1.0)),
        (3, 6.0, (1.6, 0.4)),
        (5, 2.5, (1.0, 1.0)),
        (5, 3.5, (0.2, 1.6)),
        (12, 1.6, (0.4, 1.6)),
    ],
)
def test_the_power_of_a_difference_is_the_share_that_finds_it(
    runs: int, effect: float, spreads: tuple[float, float], level: float
) -> None:
    power = power_between(effect, runs, spreads, level)
    assert 0.1 < power < 0.95
    found = welch_rate(effect, (runs, runs), spreads, level)
    assert found == pytest.approx(power, abs=tolerance(power))
    turned = power_between(effect, runs, spreads[::-1], level)
    assert turned == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize("level", [ALPHA, ALPHA / 40])
@pytest.mark.parametrize(("runs", "effect"), [(2, 30.0), (3, 7.0), (20, 1.0)])
def test_with_one_variance_the_power_is_that_of_the_noncentral_t_distribution(
    runs: int, effect: float, level: float
) -> None:
    # As of pairs. Its upper tail alone: the other one is less than 1e-10 here.
    freedom, shift = runs - 1, effect * math.sqrt(runs)
    expected = stats.nct.sf(stats.t.isf(level / 2, freedom), freedom, shift)
    power = power_of_difference(effect * math.sqrt(2), runs, 1.0, level)
    assert 0.005 < power < 0.99
    assert power == pytest.approx(float(expected), abs=1e-4)


def test_the_power_is_a_number_and_grows_with_the_runs_for_every_effect() -> None:
    counts = (2, 3, 4, 6, 12, 100, 1000, 10_000)
    for effect in (0.0, 0.01, 1.0, 8.0, 30.0, 1e3, 1e9, 1e15):
        below = [power_below_target(effect, runs) for runs in counts]
        powers = [below] + [
            [power_of_difference(effect, runs, share) for runs in counts] for share in (0.5, 0.9, 1)
        ]
        for found in powers:
            assert all(0 <= power <= 1 + 1e-12 for power in found)
            if effect >= 1:  # below, Welch's test errs by more than the effect adds
                assert all(b > a - 1e-3 for a, b in itertools.pairwise(found))


def test_two_runs_each_that_do_not_reach_p_are_not_advised() -> None:
    # SciPy 1.17.1 gives NaN for a part of the power of two runs, which was taken for enough.
    one, other = [3.00, 3.01], [3.10, 3.115]
    found = difference(one, other)
    assert found.p is not None and found.p > ALPHA
    assert found.runs_needed == 3
    spreads = statistics.stdev(one), statistics.stdev(other)
    shares = [welch_rate(found.value, (runs, runs), spreads) for runs in (2, 3)]
    assert shares[0] < 0.5 < POWER < shares[1]


def test_no_number_of_runs_is_advised_that_is_there_already() -> None:
    # Three in each group would be likely to do. But with 100 in the second, the error is nearly all
    # of the first three, and so few degrees of freedom are left that p is above the level.
    one, other = [0.0, 1.0, 2.0], [21.2 + (-1) ** n for n in range(100)]
    level = level_of_each(20)
    found = difference(one, other, level=level)
    assert found.p is not None and found.p > level
    assert power_between(found.value, 3, (1.0, statistics.stdev(other)), level) > POWER
    assert found.runs_needed == 4


def test_the_runs_needed_are_those_for_the_level_that_p_is_held_against() -> None:
    values, reference = [3.1, 3.3, 3.2], [3.25, 3.4, 3.3]
    level = level_of_each(5)
    assert level == pytest.approx(0.002)
    needed = difference(values, reference, level=level).runs_needed
    fewer = difference(values, reference).runs_needed
    assert needed is not None and fewer is not None and needed > fewer
    effect = statistics.fmean(reference) - statistics.fmean(values)
    spreads = statistics.stdev(values), statistics.stdev(reference)
    assert power_between(effect, needed, spreads, level) >= POWER
    assert power_between(effect, needed - 1, spreads, level) < POWER


def test_the_pairs_needed_find_a_difference_as_often_as_the_power_says() -> None:
    found = difference([1.0, 1.3, 0.8, 1.1], [0.6, 0.5, 0.4, 0.3], paired=True)
    needed = found.runs_needed
    assert needed is not None
    effect = found.value / statistics.stdev([0.4, 0.8, 0.4, 0.8])
    random = np.random.default_rng(1)
    for pairs, enough in ((needed, True), (needed - 1, False)):
        draws = random.normal(effect, 1.0, (DRAWS, pairs))
        share = float(np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue < ALPHA))
        assert (share > POWER - 0.02) if enough else (share < POWER + 0.02)


def test_the_runs_needed_are_the_fewest_with_the_promised_power() -> None:
    values = [3.2791, 3.2783, 3.2802, 3.2795]
    test = below_target(values, 3.28)
    assert test.p is not None
    assert test.p > ALPHA
    needed = test.runs_needed
    assert needed is not None
    effect = (3.28 - statistics.fmean(values)) / statistics.stdev(values)
    assert power_below_target(effect, needed) >= POWER > power_below_target(effect, needed - 1)
    assert needed > len(values)

    one, other = [3.1, 3.3, 3.2], [3.25, 3.4, 3.3]
    found = difference(one, other)
    needed = found.runs_needed
    assert needed is not None
    spreads = statistics.stdev(one), statistics.stdev(other)
    chances = [power_between(found.value, runs, spreads) for runs in (needed - 1, needed)]
    assert chances[0] < POWER <= chances[1]


def test_no_number_of_runs_shows_what_is_not_there() -> None:
    assert below_target([3.29, 3.30], 3.28).runs_needed is None
    assert below_target([3.279999, 3.280001, 3.28 - 1e-9], 3.28).runs_needed is None
    assert difference([1.0, 2.0], [1.0, 2.0]).runs_needed is None


def test_an_effect_far_beyond_the_spread_needs_few_runs() -> None:
    assert below_target([3.0, 3.0000001], 3.28).runs_needed == 2


def test_looking_after_every_run_and_stopping_at_the_first_success_deceives() -> None:
    # Stated in docs/compare.md: with 19 looks a mean at the target passes often.
    losses = np.random.default_rng(5).normal(0.0, 1.0, (DRAWS, 20))
    looks = [
        stats.ttest_1samp(losses[:, :runs], 0.0, axis=1, alternative="less").pvalue < ALPHA
        for runs in range(2, 21)
    ]
    assert 0.04 < float(np.mean(np.any(looks, axis=0))) < 0.08
