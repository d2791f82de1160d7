"""How many steps one trainer needs to *end* where another ends: sample efficiency, fairly.

A learning rate that falls to zero at the end makes the loss of a run fall fastest there, so where
the curve of a long run crosses a loss says little about a run that ends at that loss. What counts
is how the final loss depends on the length of the run, each length with its own schedule: train one
side for several lengths (`quintic sweep --vary train.steps=...`), and interpolate between them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quintic.compare.groups import BOOKKEEPING, DATA_PATH, Group
from quintic.compare.record import SEED
from quintic.compare.statistics import Ratio, ratio_of_pairs

STEPS = "train.steps"


@dataclass(frozen=True)
class Lengths:
    """Groups that differ in nothing but how long they were trained, beside a group that does."""

    series: tuple[Group, ...]
    """Of one config, in the order of their lengths; at least two."""
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

    @property
    def steps(self) -> float | None:
        """At which the series ends where the reference ends: the geometric mean over the seeds."""
        return None if self.ratio is None else self.ratio.value * self.reference_steps


def compare_lengths(groups: Sequence[Group]) -> list[Lengths]:
    """Every series of lengths among the groups beside every other group."""
    return [
        _lengths(series, reference)
        for series in _series(groups)
        for reference in groups
        if reference not in series and reference.runs[0].settings
    ]


def steps_to_end_at(loss: float, ends: Mapping[int, float]) -> float | None:
    """The length of run that ends at a loss, on straight lines over the logarithm of the steps.

    Args:
        loss: in nats per token.
        ends: final loss by steps.

    Returns None where no two neighbouring lengths have it between them.
    """
    lengths = sorted(ends)
    for one, other in itertools.pairwise(lengths):
        above, below = ends[one], ends[other]
        if above >= loss >= below:
            share = (above - loss) / (above - below) if above > below else 0.0
            return one * math.exp(share * math.log(other / one))
    return None


def _series(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Groups whose configs are the same but for the steps (and how often they validate)."""
    left_out = {STEPS, SEED, DATA_PATH, "train.eval_every", *BOOKKEEPING}
    found: dict[tuple[tuple[str, object], ...], list[Group]] = {}
    for group in groups:
        if settings := group.runs[0].settings:
            key = tuple((k, v) for k, v in settings.items() if k not in left_out)
            found.setdefault(key, []).append(group)
    return [
        tuple(sorted(members, key=_planned))
        for members in found.values()
        if len({_planned(group) for group in members}) == len(members) > 1
    ]


def _planned(group: Group) -> int:
    """Steps of each run: of one config they have the same."""
    steps = group.runs[0].steps_planned
    assert steps is not None, "a run with settings says how long it is"
    return steps


def _lengths(series: tuple[Group, ...], reference: Group) -> Lengths:
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
    complete = bool(seeds) and len(steps) == len(seeds)
    return Lengths(
        series=series,
        reference=reference,
        reference_steps=base,
        pairs=len(seeds),
        ratio=ratio_of_pairs(steps, [base] * len(steps)) if complete else None,
        too_short=too_short,
        too_long=too_long,
    )
