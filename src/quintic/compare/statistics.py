"""Tests and intervals for a few numbers from seeds of the same run.

All tests are Student's and Welch's, from SciPy. They take the runs as independent draws from a
normal distribution, which final losses over seeds are close to. A seed changes the initialisation
and, with `data.order shuffle`, the data order.
"""

from __future__ import annotations

import bisect
import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALPHA = 0.01
"""The level of significance of the speedrun's rules
(https://github.com/KellerJordan/modded-nanogpt#rules, the second)."""

CONFIDENCE = 0.95
"""The confidence level of every interval."""

POWER = 0.8
"""The chance to find an effect that is as large as the one seen, for the number of runs needed."""

MOST_RUNS = 10_000

TRACK3_TARGET, TRACK3_MARGIN, TRACK3_SIGMA = 3.28, 0.004, 0.0013
"""Target, margin and standard deviation over seeds, in nats, that the rules of Track 3 name."""
TRACK3_LOSS_PER_STEP = 0.0045 / 100
"""Loss in nats that a step near the end is worth there, of the same rules."""

Interval = tuple[float | None, float | None, float | None]
"""Low and high end of a confidence interval, and p; all None where there is no spread."""


@dataclass(frozen=True)
class Summary:
    """Mean and spread of some values; the spread is None for a single one."""

    count: int
    mean: float
    deviation: float | None
    """Standard deviation, with count - 1."""
    error: float | None
    """Standard error of the mean."""


@dataclass(frozen=True)
class BelowTarget:
    """One-sided t-test of whether a mean is at most a target."""

    p: float | None
    """None for one value, and for values without any spread."""
    runs_needed: int | None
    """Runs in all for p < ALPHA with a chance of POWER if mean and spread are those seen; None
    where the mean is not below the target, and where there is no spread or more than MOST_RUNS."""


@dataclass(frozen=True)
class Difference:
    """Mean of one group less that of a reference, with a two-sided test."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    runs_needed: int | None
    """Runs in each group for a p below the level with a chance of POWER if means and spreads are
    those seen."""
    pairs: int | None = None
    """Number of seeds that both have, where these were compared; None: the groups as a whole."""


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of one group over that of a reference."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    """For the test on the logarithms that the ratio is 1."""


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and standard error of at least one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(len(values), mean, None, None)
    deviation = statistics.stdev(values)
    return Summary(len(values), mean, deviation, deviation / math.sqrt(len(values)))


def below_target(values: Sequence[float], target: float) -> BelowTarget:
    """Test whether these losses show a mean at or below the target, as the speedrun's rules ask.

    p is the chance of a mean this low, or lower, if the true one is the target.
    """
    from scipy import stats

    seen = summarize(values)
    if not seen.deviation:
        return BelowTarget(None, None)
    p = float(stats.ttest_1samp(values, target, alternative="less").pvalue)
    effect = (target - seen.mean) / seen.deviation
    needed = _fewest(lambda runs: power_below_target(effect, runs)) if effect > 0 else None
    return BelowTarget(p, needed)


def power_below_target(effect: float, runs: int) -> float:
    """Return the chance of p < ALPHA where the true mean lies `effect` standard deviations under
    the target.

    With n runs t has a noncentral t distribution with n - 1 degrees of freedom and noncentrality
    effect * sqrt(n) (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988).
    """
    from scipy import stats

    critical = stats.t.isf(ALPHA, runs - 1)
    return float(stats.nct.sf(critical, runs - 1, effect * math.sqrt(runs)))


def track3_margin(mean: float, runs: int) -> float:
    """Return (3.28 - mean) sqrt(runs) in nats, of which the speedrun's Track 3 asks TRACK3_MARGIN.

    That is a one-sided z-test with p < 0.001 and TRACK3_SIGMA for known, so that one run will do
    (https://github.com/KellerJordan/modded-nanogpt, records/track_3_optimization/README.md, rule 3,
    as of August 2026).
    """
    return (TRACK3_TARGET - mean) * math.sqrt(runs)


def track3_pairwise_margin(
    mean: float, reference: float, *, runs: tuple[int, int], steps_saved: int
) -> float:
    """Return Track 3's margin, in nats, by which runs are better than a reference, of which its
    section on pairwise significance asks TRACK3_MARGIN.

    `steps_saved` are the steps of the reference less those of the runs; each is taken to be worth
    TRACK3_LOSS_PER_STEP.
    """
    gain = reference - mean + steps_saved * TRACK3_LOSS_PER_STEP
    return gain / math.sqrt(1 / runs[0] + 1 / runs[1])


def level_of_each(comparisons: int) -> float:
    """Return what each p is held against where so many are looked at: by chance alone one is below
    it somewhere as seldom as ALPHA says (Bonferroni)."""
    return ALPHA / max(1, comparisons)


def difference(
    values: Sequence[float],
    reference: Sequence[float],
    *,
    paired: bool = False,
    level: float = ALPHA,
) -> Difference:
    """Test whether two groups differ in their mean; p will be held against `level`.

    By Welch's test, since their spreads need not be equal. Where each value has a partner (the
    same seed), by Student's test of the differences: what a seed does to both alike, its
    initialisation and order of data, is no noise then.
    """
    variances = _variances(values, reference, paired)
    value = statistics.fmean(values) - statistics.fmean(reference)
    needed = None
    if any(variances) and value:
        # As many pairs as runs, so the formula for two groups holds for them with one variance.
        effect = abs(value) / math.sqrt(sum(variances) / 2)
        balance = sum(variances) ** 2 / sum(variance**2 for variance in variances)
        needed = _fewest(lambda runs: power_of_difference(effect, runs, balance, level))
    pairs = len(values) if paired else None
    return Difference(value, *_interval(values, reference, paired), needed, pairs)


def power_of_difference(
    effect: float, runs: int, balance: float = 2.0, level: float = ALPHA
) -> float:
    """Return the chance of p < `level` in Welch's test, two-sided, with `runs` (at least two) in
    each of two groups.

    `effect` is the distance of the means over the root of the mean of the variances; `balance`
    is Welch and Satterthwaite's degrees of freedom over runs - 1: 2 where the variances are equal,
    towards 1 the more they differ.
    """
    from scipy import stats

    freedom, shift = balance * (runs - 1), effect * math.sqrt(runs / 2)
    critical = stats.t.isf(level / 2, freedom)
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


def ratio(
    values: Sequence[float], reference: Sequence[float], *, paired: bool = False
) -> Ratio | None:
    """Return how many times the reference, with the interval and test of `difference` on the
    logarithms.

    Logarithms, so that the interval of a over b is that of b over a turned over. None where a value
    is not positive.
    """
    if min(*values, *reference) <= 0:
        return None
    if paired:  # first, so that equal quotients have no spread
        values = [value / base for value, base in zip(values, reference, strict=True)]
        reference = [1.0] * len(values)
    logs, reference_logs = [math.log(v) for v in values], [math.log(v) for v in reference]
    low, high, p = _interval(logs, reference_logs, paired)
    mean = statistics.fmean(logs) - statistics.fmean(reference_logs)
    low, high = (None if end is None else math.exp(end) for end in (low, high))
    return Ratio(math.exp(mean), low, high, p)


def _interval(values: Sequence[float], reference: Sequence[float], paired: bool) -> Interval:
    """Return the interval of the difference of two means, and p for a difference of 0."""
    from scipy import stats

    if not any(_variances(values, reference, paired)):
        return None, None, None
    welch = functools.partial(stats.ttest_ind, equal_var=False)
    test = (stats.ttest_rel if paired else welch)(values, reference)
    interval = test.confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high), float(test.pvalue)


def _variances(values: Sequence[float], reference: Sequence[float], paired: bool) -> list[float]:
    """Return the variance of each group, or that of the differences of pairs; empty where a single
    value has none."""
    samples = [values, reference]
    if paired:
        samples = [[value - base for value, base in zip(values, reference, strict=True)]]
    return [statistics.variance(s) for s in samples] if min(map(len, samples)) > 1 else []


def _fewest(power: Callable[[int], float]) -> int | None:
    """Return the least number of runs, at least two, whose power is POWER; None where they are more
    than MOST_RUNS."""
    runs = range(2, MOST_RUNS + 1)
    place = bisect.bisect_left(runs, POWER, key=power)
    return runs[place] if place < len(runs) else None
