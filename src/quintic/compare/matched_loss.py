"""The steps that one trainer needs to *end* where another ends: sample efficiency, fairly.

A learning rate that falls to zero at the end makes the loss of a run fall fastest there, so where
the curve of a long run crosses a loss says little about a run that ends at that loss. What counts
is how the final loss depends on the length of the run, each length with its own schedule: train one
side for several lengths (`quintic sweep --vary train.steps=...`), and interpolate between them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quintic.compare.groups import Group, settings_without
from quintic.compare.statistics import Ratio, ratio


@dataclass(frozen=True)
class MatchedLoss:
    """Groups that differ in nothing but how long they were trained, beside a group that does."""

    series: tuple[Group, ...]
    """Groups of one config, in the order of their lengths; at least two."""
    reference: Group
    reference_steps: int
    pairs: int
    """Seeds that the reference and every length have in common and finished."""
    ratio: Ratio | None
    """Steps at which the series ends where the reference ends, over those of the reference; None
    where a seed's loss lies outside the lengths."""
    too_short: int
    """Seeds of which even the longest run ends above the reference's loss."""
    too_long: int
    """Seeds of which even the shortest run ends below it."""
    flops_of_step: float | None = None
    """FLOPs of a step of the series over those of a step of the reference, where both are known."""

    @property
    def steps(self) -> float | None:
        """Return the steps at which the series ends where the reference ends: the geometric mean
        over the seeds."""
        return None if self.ratio is None else self.ratio.value * self.reference_steps

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        series = [group.label for group in self.series]
        own = {"series": series, "reference": self.reference.label, "steps": self.steps}
        return asdict(self) | own


def match_losses(groups: Sequence[Group]) -> list[MatchedLoss]:
    """Match every series of lengths among the groups with every other group; an imported model and
    those with a run that stopped early have no length of their own."""
    whole = [
        group
        for group in groups
        if not group.imported and all(run.stopped_early is None for run in group.runs)
    ]
    return [
        _match(series, reference)
        for series in _series(whole)
        for reference in whole
        if reference not in series and reference.runs[0].settings
    ]


def steps_to_end_at(loss: float, ends: Mapping[int, float]) -> float | None:
    """Return the length of run, in steps, that ends at a loss in nats per token: on straight lines
    over the logarithm of the steps between `ends`, the final loss by steps. None where no two
    neighbouring lengths have it between them."""
    lengths = sorted(ends)
    for one, other in itertools.pairwise(lengths):
        above, below = ends[one], ends[other]
        if above >= loss >= below:
            share = (above - loss) / (above - below) if above > below else 0.0
            return one * math.exp(share * math.log(other / one))
    return None


def _series(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Return groups whose configs are the same but for the steps (and how often they validate)."""
    found: dict[Any, list[Group]] = {}
    for group in groups:
        if settings := settings_without(group.runs[0], "train.steps", "train.eval_every"):
            found.setdefault(settings, []).append(group)
    return [
        tuple(sorted(members, key=_planned))
        for members in found.values()
        if len({_planned(group) for group in members}) == len(members) > 1
    ]


def _planned(group: Group) -> int:
    """Return the steps of each run, which are the same in one config."""
    steps = group.runs[0].steps_planned
    assert steps is not None, "a run with settings says how long it is"
    return steps


def _match(series: tuple[Group, ...], reference: Group) -> MatchedLoss:
    wanted = reference.final_losses
    ends = {_planned(group): group.final_losses for group in series}
    seeds = [s for s in wanted if all(s in losses for losses in ends.values())]
    steps, too_short, too_long = [], 0, 0
    for seed in seeds:
        own = {length: losses[seed] for length, losses in ends.items()}
        crossing = steps_to_end_at(wanted[seed], own)
        if crossing is not None:
            steps.append(crossing)
        elif min(own.values()) > wanted[seed]:
            too_short += 1
        else:
            too_long += 1
    base = _planned(reference)
    own_step, base_step = (g.runs[0].flops_per_step for g in (series[0], reference))
    complete = bool(seeds) and len(steps) == len(seeds)
    return MatchedLoss(
        series=series,
        reference=reference,
        reference_steps=base,
        pairs=len(seeds),
        ratio=ratio(steps, [base] * len(steps), paired=True) if complete else None,
        too_short=too_short,
        too_long=too_long,
        flops_of_step=own_step / base_step if own_step and base_step else None,
    )
