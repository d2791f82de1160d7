"""Plain sentences on what the results of a comparison support, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator

from quintic.compare.comparison import Comparison, GroupResult
from quintic.compare.matched_loss import MatchedLoss
from quintic.compare.record import AXIS_NAMES
from quintic.compare.statistics import (
    ALPHA,
    CONFIDENCE,
    MOST_RUNS,
    POWER,
    TRACK3_MARGIN,
    TRACK3_SIGMA,
    TRACK3_TARGET,
    Ratio,
    level_of_each,
)
from quintic.compare.task_scores import task_conclusions
from quintic.errors import all_of, counted

SAME_FLOPS = 1.01
"""Factor between the FLOPs of two groups up to which they are the same."""


def conclusions(comparison: Comparison) -> Iterator[str]:
    """Yield a sentence or two for each claim that one could make of these runs."""
    if comparison.target is not None:
        for result in _with_losses(comparison):
            yield _below_target(result, comparison.target)
            if result.track3_margin is not None:
                yield _track3(result)
    if not comparison.comparable:
        yield "Between the groups nothing is tested: their data differ."
    else:
        yield from _against_first(comparison)
        yield from map(_matched_loss, comparison.matched)
    yield from task_conclusions(comparison.tasks)
    if any(len(result.group.counted) == 1 for result in _with_losses(comparison)):
        yield (
            "For a claim, train each with several seeds (--train.seed), 3 at the least; seeds of "
            "one config are grouped."
        )


def _with_losses(comparison: Comparison) -> list[GroupResult]:
    """Return all but the imported models."""
    return [result for result in comparison.results if not result.group.imported]


def _against_first(comparison: Comparison) -> Iterator[str]:
    first = comparison.results[0]
    if len(comparison.results) == 1:
        what = "one run" if len(first.group.runs) == 1 else "one group"
        yield f"This is {what}: there is nothing to compare it with."
        return
    if first.group.imported:
        return
    if comparison.axis == "flops" and comparison.target is None:
        yield from _unequal_flops(comparison)
    _, *others = _with_losses(comparison)
    level = level_of_each(len(others))
    for result in others:
        yield _difference(result, first, level)
        if comparison.target is not None:
            yield _ratio(result, first, comparison, level)
        if result.track3_margin_to_first is not None:
            yield _track3_pairwise(result, first)
    if len(others) > 1 and any(
        r.difference_to_first and r.difference_to_first.p is not None for r in others
    ):
        yield (
            f"With {len(others)} groups beside {first.group.label}, each p is held against "
            f"{ALPHA:g} / {len(others)} = {level:.2g}."
        )


def _unequal_flops(comparison: Comparison) -> Iterator[str]:
    """Yield that final losses are of other FLOPs, where they are."""
    flops = {r.group.label: r.curve[-1].flops for r in comparison.results if r.curve}
    known = {label: value for label, value in flops.items() if value}
    if known and max(known.values()) > SAME_FLOPS * min(known.values()):
        yield (
            "What follows compares final losses, which are of unequal FLOPs: "
            f"{', '.join(f'{label} {value:.3g}' for label, value in known.items())}. Which config "
            "does more with its FLOPs they do not say: --target LOSS compares FLOPs to one loss."
        )


def _matched_loss(matched: MatchedLoss) -> str:
    shortest, *_, longest = (group.runs[0].steps_planned for group in matched.series)
    wanted, steps = matched.reference.label, matched.reference_steps
    opening = (
        f"{' / '.join(group.label for group in matched.series)}, one config for {shortest:,} to "
        f"{longest:,} steps, against {wanted} ({steps:,} steps)"
    )
    if not matched.pairs:
        return f"{opening}: no seed is finished on both sides, so their lengths are not compared."
    if matched.steps is None or matched.ratio is None:
        missed = [
            f"{count} of {counted(matched.pairs, 'seed')} even the {which} run ends {where} it"
            for count, which, where in (
                (matched.too_short, "longest", "above"),
                (matched.too_long, "shortest", "below"),
            )
            if count
        ]
        return f"{opening}: of {' and of '.join(missed)}, so no ratio of lengths is given."
    found = matched.ratio
    if found.low is None or found.high is None:
        evidence = "from one seed, so without an interval"
    else:
        evidence = (
            f"{CONFIDENCE:.0%} interval {found.low:.2f} to {found.high:.2f} over "
            f"{counted(matched.pairs, 'seed')}, paired"
        )
    return (
        f"{opening}: a run of {matched.steps:,.0f} steps ends where {wanted} ends, "
        f"{found.value:.2f} times as many ({evidence}){_times_flops(matched)}."
    )


def _times_flops(matched: MatchedLoss) -> str:
    """Return the ratio in FLOPs, where a step of one side is not as much work as one of the
    other."""
    if matched.ratio is None or matched.flops_of_step is None:
        return ""
    if abs(matched.flops_of_step - 1) <= 0.01:
        return ""
    return f", which are {matched.ratio.value * matched.flops_of_step:.2f} times the FLOPs"


def _below_target(result: GroupResult, target: float) -> str:
    label, seen, test = result.group.label, result.summary, result.below_target
    if seen is None or test is None:
        return f"{label}: {_no_mean(result)}, so nothing is tested against {target:g}."
    where = "at or below" if seen.mean <= target else "above"
    if seen.count == 1:
        return (
            f"{label} ends at {seen.mean:.4f}, {where} {target:g}, in one run, which has no spread "
            "to test with."
        )
    if test.p is None:
        return (
            f"{label}: {all_of(seen.count, 'run')} end at exactly {seen.mean:.4f}, so there is no "
            "spread to test with; are they one run, copied?"
        )
    opening = (
        f"{label}: the mean of {seen.count} runs is {seen.mean:.4f} ± {seen.error:.4f}, {where} "
        f"{target:g}, one-sided t-test p = {test.p:.2g}"
    )
    if test.p < ALPHA:
        return f"{opening}: significant at {ALPHA:g}, as the speedrun's rules ask."
    if seen.mean > target:
        return f"{opening}: the evidence does not support a mean at or below {target:g}."
    if test.runs_needed is None:
        return (
            f"{opening}: not significant at {ALPHA:g}, and so near that {MOST_RUNS:,} runs would "
            "not be enough."
        )
    return (
        f"{opening}: not significant at {ALPHA:g}. If mean and spread stay as they are, "
        f"with {counted(test.runs_needed - seen.count, 'more run', 'more runs')}, "
        f"{test.runs_needed} in all, there is a chance of at least {POWER:.0%} to be."
    )


def _track3(result: GroupResult) -> str:
    margin, runs = result.track3_margin or 0.0, len(result.final_losses)
    passes = "passes" if margin >= TRACK3_MARGIN else "does not pass"
    rule = f"({TRACK3_TARGET:g} - mean) sqrt({runs}) >= {TRACK3_MARGIN:g}"
    return (
        f"{result.group.label} {passes} the rule of Track 3, {rule}, with {margin:.5f}; it takes "
        f"the deviation over runs for known, {TRACK3_SIGMA:g}."
    )


def _track3_pairwise(result: GroupResult, first: GroupResult) -> str:
    margin = result.track3_margin_to_first or 0.0
    shows = "shows" if margin >= TRACK3_MARGIN else "does not show"
    return (
        f"Track 3's pairwise rule {shows} {result.group.label} to be better than "
        f"{first.group.label}, with {margin:.5f} of the {TRACK3_MARGIN:g} that it asks."
    )


def _difference(result: GroupResult, first: GroupResult, level: float) -> str:
    label, other, test = result.group.label, first.group.label, result.difference_to_first
    if result.summary is None or first.summary is None:
        missing = result if result.summary is None else first
        return f"{label} against {other}: {_no_mean(missing, named=True)}, so nothing is tested."
    if test is None:
        return f"{label} against {other}: no seed came to its end in both, so nothing is tested."
    direction = "lower" if test.value < 0 else "higher"
    ends = f"{label} ends {abs(test.value):.4f} {direction} than {other}"
    counts = result.summary.count, first.summary.count
    how, name = f"{counts[0]} and {counts[1]} runs", "Welch's test"
    if test.pairs is not None:
        counts = test.pairs, test.pairs
        how, name = f"{test.pairs} seeds, paired", "Student's test"
    if min(counts) == 1:
        if counts == (1, 1):
            how = "one run each" if test.pairs is None else "one seed that both have"
        return (
            f"{ends}, with {how}: two seeds may differ as much, so the evidence supports no claim."
        )
    if test.p is None or test.low is None or test.high is None:
        return f"{ends}, and there is no spread to test with."
    low, high = sorted((abs(test.low), abs(test.high)))
    interval = (
        f"{low:.4f} to {high:.4f} {direction}"
        if test.low * test.high > 0
        else f"{test.low:+.4f} to {test.high:+.4f}"
    )
    opening = (
        f"{ends} in the mean ({how}, {CONFIDENCE:.0%} interval {interval}, {name} p = {test.p:.2g})"
    )
    if test.p < level:
        return f"{opening}: the evidence supports that its final loss is {direction}."
    more = (
        f"; if means and spreads stay as they are, {test.runs_needed} runs in each group have a "
        f"chance of at least {POWER:.0%} to reach p < {level:.2g}"
        if test.runs_needed is not None
        else ""
    )
    return f"{opening}: at {level:.2g} the evidence does not support a difference{more}."


def _ratio(result: GroupResult, first: GroupResult, comparison: Comparison, level: float) -> str:
    label, other, axis = result.group.label, first.group.label, comparison.axis
    name = AXIS_NAMES[axis]
    no_ratio = f"No ratio of {name} between {label} and {other}"
    if missed := [r for r in (result, first) if r.to_target[axis].mean is None]:
        return f"{no_ratio}: {', and '.join(_never_reached(r, comparison) for r in missed)}."
    found = result.to_target[axis].ratio
    if found is None:
        return f"{no_ratio}: the target is reached before the first step."
    counts = result.to_target[axis].runs, first.to_target[axis].runs
    more = 1 / found.value
    opening = (
        f"To reach {comparison.target:g}, {label} takes {found.value:.3f} times the {name} of "
        f"{other}{_interval(found)}; {other} takes {more:.3f} times those of {label}"
        f"{_interval(found, inverse=True)}"
    )
    if found.p is None:
        why = "one run" if min(counts) == 1 else "runs without any spread"
        return f"{opening}. Of {why} the ratio has no uncertainty to state."
    opening += f", p = {found.p:.2g}"
    if found.p < level:
        verdict = "fewer" if found.value < 1 else "more"
        return f"{opening}: the evidence supports that it takes {verdict}."
    return f"{opening}: at {level:.2g} the evidence does not support a difference."


def _interval(found: Ratio, *, inverse: bool = False) -> str:
    if found.low is None or found.high is None:
        return ""
    low, high = (1 / found.high, 1 / found.low) if inverse else (found.low, found.high)
    return f" ({CONFIDENCE:.0%} interval {low:.3f} to {high:.3f})"


def _never_reached(result: GroupResult, comparison: Comparison) -> str:
    """Say that a group did not reach the target, or not all of it, and how near it came."""
    reach = result.to_target[comparison.axis]
    lowest = min((v.loss for r in result.group.counted for v in r.validations), default=None)
    if reach.values:
        return (
            f"{len(reach.values)} of the {reach.runs} runs of {result.group.label} "
            f"{'reaches' if len(reach.values) == 1 else 'reach'} {comparison.target:g}"
        )
    near = "" if lowest is None else f", its lowest loss is {lowest:.4f}"
    return f"{result.group.label} does not reach {comparison.target:g}{near}"


def _no_mean(result: GroupResult, *, named: bool = False) -> str:
    whose = f" of {result.group.label}" if named else ""
    runs = len(result.group.counted)
    if diverged := len(result.group.diverged):
        which = all_of(runs, "run") if diverged == runs else f"{diverged} of {runs} runs"
        have = "has" if diverged == 1 else "have"
        return f"{which}{whose} diverged and {have} no final loss"
    which = "the one run" if runs == 1 else f"none of the {runs} runs"
    return f"{which}{whose} has {'not ' if runs == 1 else ''}come to its end"
