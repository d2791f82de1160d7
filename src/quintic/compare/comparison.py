"""All results of a comparison: losses, what it took to reach a target, tests, notes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quintic.compare.groups import (
    Group,
    check_same_data,
    differing_settings,
    group_runs,
)
from quintic.compare.matched_loss import Lengths, compare_lengths
from quintic.compare.record import AXES, Axis, RunRecord
from quintic.compare.statistics import (
    BelowTarget,
    Difference,
    Ratio,
    Summary,
    below_target,
    difference,
    difference_of_pairs,
    ratio,
    ratio_of_pairs,
    summarize,
)
from quintic.errors import QuinticError

FORMAT = 1


@dataclass(frozen=True)
class MeanPoint:
    """A validation of a group: its mean loss over the seeds, the lowest and the highest."""

    steps: int
    tokens: float | None
    seconds: float | None
    """Mean over the seeds."""
    mean: float
    low: float
    high: float

    def at(self, axis: Axis) -> float | None:
        """The place on an axis; None where a run does not say."""
        value: float | None = getattr(self, axis)
        return value


@dataclass(frozen=True)
class Reach:
    """What a group took to reach the target, on one axis."""

    values: tuple[float, ...]
    """Of the runs that reached it."""
    runs: int
    """Of which so many were counted."""
    mean: float | None
    """None unless all of them reached it: the mean of those that did would flatter the group."""
    ratio: Ratio | None
    """To the first group."""


@dataclass(frozen=True)
class Result:
    """What is found of one group."""

    group: Group
    curve: tuple[MeanPoint, ...]
    """At the steps at which every counted run has a validation."""
    losses: tuple[float, ...]
    """Final losses of the counted runs that came to their end."""
    diverged: tuple[RunRecord, ...]
    unfinished: tuple[RunRecord, ...]
    summary: Summary | None
    """Of the final losses; None where there are none, or a run diverged."""
    below: BelowTarget | None
    difference: Difference | None
    """To the first group."""
    reach: dict[Axis, Reach]
    """Axes that every counted run knows."""
    tokens_per_s: float | None
    memory_gib: float | None
    optimizer_share: float | None


@dataclass(frozen=True)
class Comparison:
    """Groups of runs beside the first of them."""

    target: float | None
    axis: Axis
    paired: bool
    """Whether a seed of one group was compared with the same seed of the first."""
    results: tuple[Result, ...]
    settings: dict[str, list[Any]]
    """What differs between the configs, a value for each group."""
    lengths: tuple[Lengths, ...]
    """Where one config was trained for several lengths: which of them ends where another ends."""
    comparable: bool
    """False where the losses do not compare and were forced side by side."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: every number of the comparison."""
        return {
            "quintic compare": FORMAT,
            "target": self.target,
            "axis": self.axis,
            "paired": self.paired,
            "comparable": self.comparable,
            "settings": self.settings,
            "notes": list(self.notes),
            "lengths": [_lengths_dict(lengths) for lengths in self.lengths],
            "groups": [_result_dict(result) for result in self.results],
        }


def compare(
    runs: Sequence[RunRecord],
    *,
    target: float | None = None,
    axis: Axis = "tokens",
    paired: bool = False,
    force: bool = False,
) -> Comparison:
    """Compare runs, in groups, with the first of them.

    Raises `QuinticError` where their losses do not compare (unless forced), where the same run is
    named twice, where one of them does not know the axis, and, with `paired`, where a group has no
    seed of the first.
    """
    if not runs:
        raise QuinticError("compare needs at least one run: name the folders of runs, or logs")
    if target is not None and not (math.isfinite(target) and target > 0):
        raise QuinticError(f"--target is {target}: it must be a positive loss in nats per token")
    _check_once(runs)
    comparable = True
    try:
        check_same_data(runs)
    except QuinticError:
        if not force:
            raise
        comparable = False
    for run in runs:
        if not run.has(axis):
            raise QuinticError(_lacks(run, axis))
    groups = group_runs(runs)
    first: Result | None = None
    results: list[Result] = []
    for group in groups:
        if paired and first is not None:
            _check_pairs(group, first.group)
        results.append(_result(group, target, first if comparable else None, paired))
        first = results[0]
    return Comparison(
        target=target,
        axis=axis,
        paired=paired,
        results=tuple(results),
        settings=differing_settings(groups),
        lengths=tuple(compare_lengths(groups)) if comparable else (),
        comparable=comparable,
        notes=tuple(_notes(results, comparable)),
    )


def _check_once(runs: Sequence[RunRecord]) -> None:
    seen: dict[Path, Path] = {}
    for run in runs:
        resolved = run.path.resolve()
        if resolved in seen:
            raise QuinticError(
                f"{run.path} and {seen[resolved]} are the same run: name each once, since a copy "
                "is no further evidence"
            )
        seen[resolved] = run.path


def _lacks(run: RunRecord, axis: Axis) -> str:
    if axis == "tokens":
        return (
            f"{run.path} does not say how many tokens a step has: give --batch-tokens (524288 in "
            "the GPT-2 run of llm.c), or --x steps"
        )
    return f"the log {run.path} has no times: give --x steps"


def _check_pairs(group: Group, first: Group) -> None:
    seeds = [{run.seed for run in g.counted} - {None} for g in (group, first)]
    if not seeds[0] & seeds[1]:
        raise QuinticError(
            f"--paired compares runs of the same seed, and {group.label} has none of those of "
            f"{first.label}: train both with the same --train.seed, or leave --paired out"
        )


def _result(group: Group, target: float | None, first: Result | None, paired: bool) -> Result:
    counted = group.counted
    diverged = tuple(run for run in counted if run.diverged_at is not None)
    unfinished = tuple(run for run in counted if run.diverged_at is None and not run.finished)
    losses = tuple(run.final_loss for run in counted if run.final_loss is not None)
    # A run that diverged has no loss to average, and leaving it out would flatter the others.
    summary = summarize(losses) if losses and not diverged else None
    return Result(
        group=group,
        curve=tuple(_curve(counted)),
        losses=losses,
        diverged=diverged,
        unfinished=unfinished,
        summary=summary,
        below=below_target(losses, target) if summary is not None and target is not None else None,
        difference=_difference(group, first.group, paired)
        if summary is not None and first is not None and first.summary is not None
        else None,
        reach={}
        if target is None
        else {
            axis: _reach(group, target, axis, first, paired)
            for axis in AXES
            if all(run.has(axis) for run in counted)
        },
        tokens_per_s=_mean([run.tokens_per_s for run in counted]),
        memory_gib=max((r.memory_gib for r in counted if r.memory_gib is not None), default=None),
        optimizer_share=_mean([run.optimizer_share for run in counted]),
    )


def _curve(runs: Sequence[RunRecord]) -> list[MeanPoint]:
    by_step = [{point.steps: point for point in run.points} for run in runs]
    curve = []
    for step in sorted(set.intersection(*(set(points) for points in by_step))):
        points = [found[step] for found in by_step]
        losses = [point.loss for point in points]
        curve.append(
            MeanPoint(
                steps=step,
                tokens=_mean([point.tokens for point in points]),
                seconds=_mean([point.seconds for point in points]),
                mean=statistics.fmean(losses),
                low=min(losses),
                high=max(losses),
            )
        )
    return curve


def _difference(group: Group, first: Group, paired: bool) -> Difference | None:
    """Of the final losses; None where they are to be paired and no seed came to both ends."""
    if not paired:
        losses, reference = (
            [run.final_loss for run in g.counted if run.final_loss is not None]
            for g in (group, first)
        )
        return difference(losses, reference)
    pairs = _pairs(group.final_losses, first.final_losses)
    return difference_of_pairs(*pairs) if pairs else None


def _reach(group: Group, target: float, axis: Axis, first: Result | None, paired: bool) -> Reach:
    runs = group.counted
    found = [run.reached(target, axis) for run in runs]
    values = tuple(value for value in found if value is not None)
    complete = len(values) == len(runs)
    reference = first.reach.get(axis) if first is not None else None
    found_ratio = None
    if complete and first is not None and reference is not None and reference.mean is not None:
        if not paired:
            found_ratio = ratio(values, reference.values)
        elif pairs := _pairs(*(_reached(g, target, axis) for g in (group, first.group))):
            found_ratio = ratio_of_pairs(*pairs)
    return Reach(
        values=values,
        runs=len(runs),
        mean=statistics.fmean(values) if complete else None,
        ratio=found_ratio,
    )


def _reached(group: Group, target: float, axis: Axis) -> dict[int, float]:
    """What the counted runs took to reach the target, by seed; runs that did so at the start have
    no ratio and are left out."""
    found = {run.seed: run.reached(target, axis) for run in group.counted if run.seed is not None}
    return {seed: value for seed, value in found.items() if value}


def _pairs(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> tuple[list[float], list[float]] | None:
    """The values of the seeds that both have, in the same order; None where there are none."""
    seeds = [seed for seed in values if seed in reference]
    return ([values[s] for s in seeds], [reference[s] for s in seeds]) if seeds else None


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is unknown."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _notes(results: Sequence[Result], comparable: bool) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    runs = [run for result in results for run in result.group.runs]
    if not comparable:
        yield (
            "the losses do not compare, since the runs were trained or validated on different "
            "data; they are side by side because of --force"
        )
    for result in results:
        for run in result.diverged:
            yield f"{run.path} diverged: its loss is not finite at step {run.diverged_at:,}"
        for run in result.unfinished:
            yield (
                f"{run.path} is unfinished, {run.steps_done:,} of {run.steps_planned:,} steps: it "
                "has no final loss"
            )
        for run in result.group.repeated:
            yield f"{run.path} repeats seed {run.seed} of its group: the first run of a seed counts"
        commits = {run.commit for run in result.group.runs if run.commit is not None}
        if len(commits) > 1:
            yield (
                f"the runs of {result.group.label} were trained by different commits: "
                f"{', '.join(sorted(map(_short, commits)))}"
            )
    unknown = [str(run.path) for run in runs if run.data.described is None]
    if unknown and len(results) > 1:
        yield (
            f"on which data {', '.join(unknown)} {'was' if len(unknown) == 1 else 'were'} trained "
            "is unknown: losses compare only if it is the same"
        )
    if len(devices := sorted({run.device for run in runs if run.device is not None})) > 1:
        yield f"seconds do not compare, the devices differ: {'; '.join(devices)}"
    elif len({run.source for run in runs}) > 1:
        yield "seconds do not compare: the trainers count them differently, and elsewhere"


def _short(commit: str) -> str:
    """The first digits of a commit, with the + that says that the tree had changes."""
    return commit[:10] + ("+" if commit.endswith("+") else "")


def _result_dict(result: Result) -> dict[str, Any]:
    return {
        "label": result.group.label,
        "runs": [_run_dict(run) for run in result.group.runs],
        "final_losses": list(result.losses),
        "summary": result.summary and asdict(result.summary),
        "below_target": result.below and asdict(result.below),
        "difference_to_first": result.difference and asdict(result.difference),
        "to_target": {axis: asdict(reach) for axis, reach in result.reach.items()},
        "tokens_per_s": result.tokens_per_s,
        "memory_gib": result.memory_gib,
        "optimizer_share": result.optimizer_share,
        "curve": [asdict(point) for point in result.curve],
    }


def _lengths_dict(lengths: Lengths) -> dict[str, Any]:
    return {
        "series": [group.label for group in lengths.series],
        "reference": lengths.reference.label,
        "reference_steps": lengths.reference_steps,
        "pairs": lengths.pairs,
        "steps": lengths.steps,
        "ratio": lengths.ratio and asdict(lengths.ratio),
        "too_short": lengths.too_short,
        "too_long": lengths.too_long,
    }


def _run_dict(run: RunRecord) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "source": run.source,
        "seed": run.seed,
        "settings": dict(run.settings),
        "program_sha256": run.program,
        "data": asdict(run.data),
        "device": run.device,
        "commit": run.commit,
        "steps_planned": run.steps_planned,
        "diverged_at": run.diverged_at,
        "final_loss": run.final_loss,
        "tokens_per_s": run.tokens_per_s,
        "memory_gib": run.memory_gib,
        "optimizer_share": run.optimizer_share,
        "validations": [asdict(point) for point in run.points],
    }
