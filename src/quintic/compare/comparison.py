"""All results of a comparison: losses, what it took to reach a target, tests, notes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from quintic.compare.groups import (
    Group,
    check_once,
    check_same_data,
    differing_settings,
    group_runs,
)
from quintic.compare.matched_loss import MatchedLoss, match_losses
from quintic.compare.record import AXES, Axis, Place, RunRecord
from quintic.compare.statistics import (
    ALPHA,
    TRACK3_TARGET,
    BelowTarget,
    Difference,
    Ratio,
    Summary,
    below_target,
    difference,
    level_of_each,
    ratio,
    summarize,
    track3_margin,
    track3_pairwise_margin,
)
from quintic.compare.task_scores import TaskComparison, compare_tasks
from quintic.errors import QuinticError, counted
from quintic.run_dir import ENVIRONMENT
from quintic.run_lines import no_better_than_guessing

FORMAT = 1


@dataclass(frozen=True)
class MeanLoss(Place):
    """A validation of a group: its mean loss over the seeds, the lowest and the highest."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ToTarget:
    """Tokens, steps, seconds or FLOPs that a group took to reach the target."""

    values: tuple[float, ...]
    """Those of the runs that reached it."""
    runs: int
    """Runs that were counted, whether they reached it or not."""
    mean: float | None
    """None unless all of them reached it: the mean of those that did would flatter the group."""
    ratio: Ratio | None
    """Ratio to the first group."""


@dataclass(frozen=True)
class GroupResult:
    """The results of one group."""

    group: Group
    curve: tuple[MeanLoss, ...]
    """At the steps at which every counted run has a validation."""
    final_losses: tuple[float, ...]
    """Final losses of the counted runs that came to their end."""
    summary: Summary | None
    """Mean and spread of the final losses; None where there are none, or a run diverged."""
    below_target: BelowTarget | None
    difference_to_first: Difference | None
    track3_margin: float | None
    """Nats by which the group passes the speedrun's Track 3, which asks for TRACK3_MARGIN; None
    for other targets than its own, and for runs that are not of modded-nanogpt."""
    track3_margin_to_first: float | None
    """The same by its pairwise rule, as evidence that the group is better than the first."""
    to_target: dict[Axis, ToTarget]
    """Cost of the target on each axis that every counted run knows."""
    tokens_per_s: float | None
    memory_gib: float | None
    optimizer_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        found = asdict(self)
        del found["group"]
        runs = [run.to_dict() for run in self.group.runs]
        return {"label": self.group.label, "runs": runs, **found}


@dataclass(frozen=True)
class Comparison:
    """Groups of runs beside the first of them."""

    target: float | None
    axis: Axis
    paired: bool
    """True where a seed of one group was compared with the same seed of the first."""
    results: tuple[GroupResult, ...]
    settings: dict[str, list[Any]]
    """Fields that differ between the configs, with a value for each group."""
    matched: tuple[MatchedLoss, ...]
    """Every config that was trained for several lengths, beside every other group."""
    comparable: bool
    """False where the losses do not compare and were forced side by side."""
    notes: tuple[str, ...]
    tasks: TaskComparison

    @property
    def has_losses(self) -> bool:
        """Return whether there are losses to compare, and not scores on tasks alone."""
        return any(run.validations for r in self.results for run in r.group.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return every number of the comparison, ready for JSON."""
        return {
            "quintic compare": FORMAT,
            "target": self.target,
            "axis": self.axis,
            "paired": self.paired,
            "comparable": self.comparable,
            "settings": self.settings,
            "notes": list(self.notes),
            "lengths": [matched.to_dict() for matched in self.matched],
            "groups": [result.to_dict() for result in self.results],
            "tasks": [result.to_dict() for result in self.tasks.results],
        }


def compare(
    runs: Sequence[RunRecord],
    *,
    target: float | None = None,
    axis: Axis | Literal["auto"] = "tokens",
    paired: bool = False,
    force: bool = False,
) -> Comparison:
    """Compare runs, in groups, with the first of them, by tokens, steps, seconds or FLOPs; `auto`
    is tokens, or steps where a log does not say its tokens.

    Raises `QuinticError` where their losses do not compare (unless forced), where the same run is
    named twice, where one of them does not know the axis, and, with `paired`, where a group has no
    seed of the first.
    """
    if not runs:
        raise QuinticError("compare needs at least one run: name the folders of runs, or logs")
    if target is not None and not (math.isfinite(target) and target > 0):
        raise QuinticError(f"--target is {target}: it must be a positive loss in nats per token")
    check_once(runs)
    comparable = True
    try:
        check_same_data(runs)
    except QuinticError:
        if not force:
            raise
        comparable = False
    unsized = next((run for run in runs if not run.has("tokens")), None)
    notes: list[str] = []
    if axis == "auto" and unsized is not None:
        notes.append(
            f"{unsized.path} does not say how many tokens a step has, so steps are compared; where "
            "the batch is constant, --batch-tokens adds tokens"
        )
    if axis == "auto":
        axis = "tokens" if unsized is None else "steps"
    for run in runs:
        if not run.has(axis):
            raise QuinticError(
                f"{run.path} does not say how many tokens a step has: give --batch-tokens (524288 "
                "in the GPT-2 run of llm.c), or --x steps"
                if axis == "tokens"
                else f"the log {run.path} has no times: give --x steps"
                if axis == "seconds"
                else f"{run.path} does not say the FLOPs of a token, since its model is not known: "
                "give --x tokens or --x steps"
            )
    groups = group_runs(runs)
    first = _result(groups[0], target, None, paired)
    reference, results = first if comparable else None, [first]
    level = level_of_each(max(1, sum(not group.imported for group in groups[1:])))
    for group in groups[1:]:
        if paired and not group.imported:
            _check_pairs(group, groups[0])
        results.append(_result(group, target, reference, paired, level))
    return Comparison(
        target=target,
        axis=axis,
        paired=paired,
        results=tuple(results),
        settings=differing_settings(groups),
        matched=tuple(match_losses(groups)) if comparable else (),
        comparable=comparable,
        notes=(*notes, *_notes(results, target, comparable, axis)),
        tasks=compare_tasks(groups),
    )


def _check_pairs(group: Group, first: Group) -> None:
    seeds, wanted = ({run.seed for run in g.counted} - {None} for g in (group, first))
    if not seeds & wanted:
        raise QuinticError(
            f"--paired compares runs of the same seed, and {group.label} has none of those of "
            f"{first.label}: train both with the same --train.seed, or leave --paired out"
        )


def _result(
    group: Group,
    target: float | None,
    first: GroupResult | None,
    paired: bool,
    level: float = ALPHA,
) -> GroupResult:
    counted = group.counted
    losses = tuple(run.final_loss for run in counted if run.final_loss is not None)
    # A run that diverged has no loss to average, and leaving it out would flatter the others.
    summary = summarize(losses) if losses and not group.diverged else None
    to_first = None
    if summary is not None and first is not None and first.summary is not None:
        values, reference = _samples(group, first.group, lambda run: run.final_loss, paired)
        if values:
            to_first = difference(values, reference, paired=paired, level=level)
    margin = margin_to_first = None
    if summary is not None and target == TRACK3_TARGET and _of_track3(group):
        margin = track3_margin(summary.mean, len(losses))
        if first is not None and first.summary is not None and first.track3_margin is not None:
            margin_to_first = track3_pairwise_margin(
                summary.mean,
                first.summary.mean,
                runs=(len(losses), len(first.final_losses)),
                steps_saved=first.group.counted[0].steps_done - counted[0].steps_done,
            )
    axes = [axis for axis in AXES if all(run.has(axis) for run in counted)]
    return GroupResult(
        group=group,
        curve=tuple(_curve(counted)),
        final_losses=losses,
        summary=summary,
        below_target=None if summary is None or target is None else below_target(losses, target),
        difference_to_first=to_first,
        track3_margin=margin,
        track3_margin_to_first=margin_to_first,
        to_target={}
        if target is None
        else {axis: _to_target(group, target, axis, first, paired) for axis in axes},
        tokens_per_s=_mean([run.tokens_per_s for run in counted]),
        memory_gib=max((r.memory_gib for r in counted if r.memory_gib is not None), default=None),
        optimizer_share=_mean([run.optimizer_share for run in counted]),
    )


def _of_track3(group: Group) -> bool:
    """Return whether the rules of Track 3 may hold: logs of modded-nanogpt of one length."""
    return all(run.source == "modded-nanogpt" for run in group.runs) and (
        len({run.steps_done for run in group.counted}) == 1
    )


def _curve(runs: Sequence[RunRecord]) -> Iterator[MeanLoss]:
    by_step = [{validation.steps: validation for validation in run.validations} for run in runs]
    for step in sorted(set.intersection(*map(set, by_step))):
        found = [validations[step] for validations in by_step]
        losses = [validation.loss for validation in found]
        yield MeanLoss(
            steps=step,
            tokens=_mean([validation.tokens for validation in found]),
            seconds=_mean([validation.seconds for validation in found]),
            flops=_mean([validation.flops for validation in found]),
            mean=statistics.fmean(losses),
            low=min(losses),
            high=max(losses),
        )


def _samples(
    group: Group, first: Group, measure: Callable[[RunRecord], float | None], paired: bool
) -> tuple[list[float], list[float]]:
    """Return a measure of the counted runs of two groups, where it is known; if paired, that of
    the seeds that both have, in the same order."""
    values, reference = (
        {
            run.seed if paired else place: value
            for place, run in enumerate(g.counted)
            if (value := measure(run)) is not None
        }
        for g in (group, first)
    )
    if not paired:
        return list(values.values()), list(reference.values())
    seeds = [seed for seed in values if seed is not None and seed in reference]
    return [values[seed] for seed in seeds], [reference[seed] for seed in seeds]


def _to_target(
    group: Group, target: float, axis: Axis, first: GroupResult | None, paired: bool
) -> ToTarget:
    runs = group.counted
    values = tuple(v for run in runs if (v := run.reached(target, axis)) is not None)
    complete = len(values) == len(runs)
    reference = first.to_target.get(axis) if first is not None else None
    to_first = None
    if complete and first is not None and reference is not None and reference.mean is not None:
        samples = _samples(group, first.group, lambda run: run.reached(target, axis), paired)
        if paired:  # a run that was there at the start has no ratio
            pairs = [pair for pair in zip(*samples, strict=True) if all(pair)]
            samples = [one for one, _ in pairs], [other for _, other in pairs]
        if samples[0]:
            to_first = ratio(*samples, paired=paired)
    mean = statistics.fmean(values) if complete else None
    return ToTarget(values, len(runs), mean, to_first)


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where one of them is unknown."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def sizes_differ(results: Sequence[GroupResult]) -> bool:
    """Return whether a token costs more FLOPs in one of the groups than in another, by more than a
    hundredth."""
    runs = [run for result in results for run in result.group.counted]
    last = [validation for run in runs for validation in run.validations[-1:]]
    costs = [v.flops / v.tokens for v in last if v.flops and v.tokens]
    return bool(costs) and max(costs) > 1.01 * min(costs)


def _notes(
    results: Sequence[GroupResult], target: float | None, comparable: bool, axis: Axis
) -> Iterator[str]:
    """Yield what a reader must know before believing the numbers."""
    runs = [run for result in results for run in result.group.runs]
    if not comparable:
        yield (
            "the losses do not compare, since the runs were trained or validated on different "
            "data; they are side by side because of --force"
        )
    for result in results:
        group = result.group
        first = group.runs[0]
        if first.stopped_at is not None and first.stopped_early is None:
            yield (
                f"all runs of {group.label} ({len(group.runs)}) stop at step "
                f"{first.stopped_at:,} of {first.steps_planned:,}: that is taken as their end"
            )
        if group.imported:
            yield (
                f"{first.path} was imported from {first.imported_from} and has no losses of a run: "
                "its scores on tasks are compared"
            )
        for run in group.diverged:
            yield f"{run.path} diverged: its loss is not finite at step {run.diverged_at:,}"
        for run in group.counted:
            if run.gaps:
                yield (
                    f"{run.path} has a loss that is not a number at step {run.gaps[0]:,}"
                    f"{f', {len(run.gaps)} in all' if len(run.gaps) > 1 else ''}, and finite ones "
                    "after it: is the log whole? Its curve goes on without"
                )
            if run.diverged_at is None and not run.finished:
                state = "complete, and losses of it are lost" if run.trained else "unfinished"
                yield (
                    f"{run.path} is {state}, {run.steps_done:,} of "
                    f"{counted(run.steps_planned or 0, 'step')}: it has no final loss"
                )
            if run.stopped_early is not None:
                yield (
                    f"{run.path} stopped early at step {run.stopped_at:,} of "
                    f"{run.steps_planned:,}, by a rule of its own, and its final loss is that of "
                    f"there: {run.stopped_early}"
                )
        for run in group.counted:
            if run.environment_damaged:
                yield (
                    f"the {ENVIRONMENT} of {run.path} is damaged: what it said of data, device and "
                    "commit is not known; restore it"
                )
            if run.datasets > 1:
                yield (
                    f"{run.path} was trained on {run.datasets} datasets one after the other: its "
                    "curve joins losses on different text"
                )
            if anew := run.settings.get("continued_from.anew"):
                yield (
                    f"{run.path} goes on from {run.settings['continued_from.run']}, which trained "
                    f"its first {anew:,} steps otherwise: on other data or at other learning rates"
                )
            if origin := run.settings.get("init_from.run"):
                yield (
                    f"{run.path} began with the weights of {origin} at step "
                    f"{run.settings['init_from.at_step']:,}"
                )
        for run in group.repeated:
            if (original := group.original(run)) is not run:
                yield f"{run.path} has every loss of {original.path}: a copy does not count"
                continue
            first = next(one for one in group.counted if one.seed == run.seed)
            yield (
                f"{run.path} repeats seed {run.seed}, of {first.path}: the first run of a seed "
                "counts"
            )
        if nothing := [text for run in group.counted if (text := _learned_nothing(run))]:
            total = len(group.counted)
            some = f"{len(nothing)} of {total} runs of " if len(nothing) < total else ""
            yield f"of {some}{group.label}, {nothing[0]}"
        commits = {run.commit for run in group.runs if run.commit is not None}
        if len(commits) > 1:
            yield (
                f"the runs of {group.label} were trained by different commits: "
                f"{', '.join(sorted(map(_short, commits)))}"
            )
    if target is not None:
        found = {run.interval_at(target) for result in results for run in result.group.counted}
        intervals = sorted(interval for interval in found if interval is not None)
        if len(intervals) > 1:
            yield (
                f"the runs validate every {intervals[0]:,} to {intervals[-1]:,} steps where they "
                f"come to {target:g}: the place between two validations is known the less, and is "
                "the more too late, the wider they are apart"
            )
    if axis != "flops" and sizes_differ(results):
        yield (
            "a token costs more operations in one of these models than in another, so neither "
            "tokens nor steps are the same work: --x flops compares by FLOPs"
        )
    unknown = [
        r.group.label
        for r in results
        if r.group.runs[0].data.described is None and not r.group.imported
    ]
    if unknown and len(results) > 1:
        yield (
            f"on which data {', '.join(unknown)} {'was' if len(unknown) == 1 else 'were'} trained "
            "is unknown: losses compare only if it is the same"
        )
    if len(devices := sorted({run.device for run in runs if run.device is not None})) > 1:
        yield f"seconds do not compare, the devices differ: {'; '.join(devices)}"
    elif len({run.source for run in runs}) > 1:
        yield "seconds do not compare: the trainers count them differently, and elsewhere"


def _learned_nothing(run: RunRecord) -> str | None:
    vocab_size = run.settings.get("model.vocab_size")
    if run.final_loss is None or vocab_size is None:
        return None
    return no_better_than_guessing(run.final_loss, vocab_size)


def _short(commit: str) -> str:
    """Return the first digits of a commit, with the + that says that the tree had changes."""
    return commit[:10] + ("+" if commit.endswith("+") else "")
