"""Tests and intervals for a few numbers from seeds of the same run.

All tests are Student's and Welch's, from SciPy. They take the runs as independent draws from a
normal distribution, which final losses over seeds are close to. A seed changes the initialisation
and, with `data.order shuffle`, the data order.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ALPHA = 0.01
"""The level of significance of the speedrun's rules
(https://github.com/KellerJordan/modded-nanogpt#rules, the second)."""

CONFIDENCE = 0.95
"""The confidence level of every interval."""

POWER = 0.8
"""The chance to find an effect that is as large as the one seen, for the number of runs needed."""

MOST_RUNS = 10_000

ROUNDING = 1e-12
"""Deviation, over the size of the values, up to which it is of the rounding of numbers."""

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
    """Runs in all for p < ALPHA with a chance of at least POWER if mean and spread are those seen,
    more than there are where p is not below it; None where the mean is not below the target, and
    where there is no spread or more than MOST_RUNS."""


@dataclass(frozen=True)
class Difference:
    """Mean of one group less that of a reference, with a two-sided test."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    runs_needed: int | None
    """Runs in each group for a p below the level with a chance of at least POWER if means and
    spreads are those seen, more than the smaller group has where p is not below it."""
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
    deviation = math.sqrt(_variance(values, values))
    return Summary(len(values), mean, deviation, deviation / math.sqrt(len(values)))


def below_target(values: Sequence[float], target: float) -> BelowTarget:
    """Test whether these losses show a mean at or below the target, as the speedrun's rules ask.

    p is the chance of a mean this low, or lower, if the true one is the target.
    """
    from scipy import stats

    seen = summarize(values)
    if not seen.deviation:
        return BelowTarget(None, None)
    with _nearly_identical():
        p = float(stats.ttest_1samp(values, target, alternative="less").pvalue)
    effect = (target - seen.mean) / seen.deviation
    least = 2 if p < ALPHA else len(values) + 1
    power = functools.partial(power_below_target, effect)
    return BelowTarget(p, _fewest(power, least) if effect > 0 else None)


def power_below_target(effect: float, runs: int) -> float:
    """Return the chance of p < ALPHA where the true mean lies `effect` standard deviations under
    the target.

    With n runs t has a noncentral t distribution with n - 1 degrees of freedom and noncentrality
    effect * sqrt(n) (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988): where
    the spread seen is s of the true deviations, t is a normal variable over s, and the chance is
    the mean over the distribution of s.
    """
    from scipy import special, stats

    freedom, (shares, weights) = runs - 1, _quadrature()
    bound = stats.t.isf(ALPHA, freedom) * np.sqrt(stats.chi2.ppf(shares, freedom) / freedom)
    return float(special.ndtr(effect * math.sqrt(runs) - bound) @ weights)


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
    low, high, p = _interval(values, reference, paired)
    needed = None
    if p is not None and value:
        # As many pairs as runs, so the formula for two groups holds for them with one variance.
        effect, share = abs(value) / math.sqrt(sum(variances) / 2), variances[0] / sum(variances)
        least = 2 if p < level else min(len(values), len(reference)) + 1
        needed = _fewest(lambda runs: power_of_difference(effect, runs, share, level), least)
    return Difference(value, low, high, p, needed, len(values) if paired else None)


def power_of_difference(
    effect: float, runs: int, share: float = 0.5, level: float = ALPHA
) -> float:
    """Return the chance of p < `level` in Welch's test, two-sided, with `runs` (at least two) in
    each of two groups.

    `effect` is the distance of the means over the root of the mean of the variances; `share` is
    the first group's part of the sum of the variances: 0.5 where they are equal, and at 1 the test
    is Student's of one group, as of pairs.

    Welch's test takes its degrees of freedom from the variances seen, so with few runs they vary,
    and t has no noncentral t distribution. But they depend on the ratio of these variances alone,
    and given that, the rest is known (Moser, Stevens and Watts, Communications in Statistics -
    Theory and Methods 18, 1989). With v = runs - 1 the variances seen are the true ones times
    X1 / v and X2 / v, of two chi-squared variables of v degrees of freedom. X1 + X2 is chi-squared
    with 2v, b = X1 / (X1 + X2) has the distribution Beta(v / 2, v / 2), and the two are independent
    (Lukacs 1955, https://doi.org/10.1214/aoms/1177728549). With q1 = share b and
    q2 = (1 - share) (1 - b), Welch and Satterthwaite's degrees of freedom are
    v (q1 + q2)^2 / (q1^2 + q2^2), and t is a normal variable of mean effect sqrt(runs / 2) and
    variance 1, over sqrt(2 (q1 + q2)) sqrt((X1 + X2) / 2v). The chance is that of the normal
    variable to lie beyond its bound on either side, in the mean over b and X1 + X2.
    """
    from scipy import special, stats

    freedom, (shares, weights) = runs - 1, _quadrature()
    b = stats.beta.ppf(shares, freedom / 2, freedom / 2)
    one, other = share * b, (1 - share) * (1 - b)
    welch = freedom * (one + other) ** 2 / (one**2 + other**2)
    critical = stats.t.isf(level / 2, welch) * np.sqrt(2 * (one + other))
    bound = np.outer(critical, np.sqrt(stats.chi2.ppf(shares, 2 * freedom) / (2 * freedom)))
    shift = effect * math.sqrt(runs / 2)
    beyond = special.ndtr(shift - bound) + special.ndtr(-shift - bound)
    return float(weights @ beyond @ weights)


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
    with _nearly_identical():
        test = (stats.ttest_rel if paired else welch)(values, reference)
    interval = test.confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high), float(test.pvalue)


def _variances(values: Sequence[float], reference: Sequence[float], paired: bool) -> list[float]:
    """Return the variance of each group, or that of the differences of pairs; empty where a single
    value has none."""
    samples = [values, reference]
    if paired:
        samples = [[value - base for value, base in zip(values, reference, strict=True)]]
    if min(map(len, samples)) < 2:
        return []
    return [_variance(sample, [*values, *reference]) for sample in samples]


def _variance(sample: Sequence[float], values: Sequence[float]) -> float:
    """Return the variance of a sample; 0 where it is of the rounding of the values that the sample
    was computed from."""
    variance = statistics.variance(sample)
    rounding = ROUNDING * max(1.0, *map(abs, values))
    return variance if variance > rounding**2 else 0.0


@contextlib.contextmanager
def _nearly_identical() -> Iterator[None]:
    """Keep SciPy from warning of a group without spread: there is one in another, or no test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss occurred in moment calculation")
        yield


def _fewest(power: Callable[[int], float], least: int) -> int | None:
    """Return the smallest number of runs, from `least` on, whose power is POWER or more; None where
    it is more than MOST_RUNS."""
    runs = range(least, MOST_RUNS + 1)
    place = bisect.bisect_left(runs, POWER, key=power)
    return runs[place] if place < len(runs) else None


@functools.cache
def _quadrature() -> tuple[Any, Any]:
    """Return places from 0 to 1 and weights for the mean over a distribution by its quantiles
    (Gauss and Legendre's).

    Powers are summed up with these since SciPy's noncentral t distribution gives NaN at some places
    (1.17.1: `nct.cdf(-9.92, 2, 8)`; https://github.com/scipy/scipy/issues/25470).
    """
    places, weights = np.polynomial.legendre.leggauss(100)
    return (1 + places) / 2, weights / 2
