"""The summary of a sweep: the mean over seeds of each combination, and which is best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from quintic.compare.statistics import Summary, summarize
from quintic.compare.table import UNKNOWN, loss_text
from quintic.config import Config
from quintic.console import Table
from quintic.sweep.plan import Plan, PlannedRun, Values, combination_name, value_text
from quintic.sweep.record import Outcome


@dataclass(frozen=True)
class Combination:
    """The runs that differ only in the seed."""

    values: Values
    runs: tuple[PlannedRun, ...]
    outcomes: tuple[Outcome, ...]

    def count(self, kind: str) -> int:
        """Return how many runs have an outcome of this kind."""
        return sum(outcome.kind == kind for outcome in self.outcomes)

    @property
    def losses(self) -> list[float]:
        """Return the final validation losses of the runs that finished."""
        return [o.val_loss for o in self.outcomes if o.val_loss is not None]

    @property
    def loss(self) -> Summary | None:
        """Return mean and spread over the seeds that finished; None where none did."""
        return summarize(self.losses) if self.losses else None

    @property
    def learned_nothing(self) -> str | None:
        """Return in words that a run predicts no better than by guessing; None where none does."""
        return next((o.learned_nothing for o in self.outcomes if o.learned_nothing), None)

    @property
    def name(self) -> str:
        """Return the values in words."""
        return combination_name(self.values)

    @property
    def config(self) -> Config:
        """Return the config with the first seed, as a recipe."""
        return self.runs[0].config

    @property
    def whole(self) -> bool:
        """Return whether every seed finished, so that the mean may be compared."""
        return self.count("finished") == len(self.runs)


@dataclass(frozen=True)
class SweepSummary:
    """The combinations of a sweep, best first: those with all seeds, then those of which some are
    missing, those of which some diverged, and those without any loss."""

    plan: Plan
    ranked: tuple[Combination, ...]

    @property
    def best(self) -> Combination | None:
        """Return the one with the lowest mean among those of which every seed finished."""
        return self.ranked[0] if self.ranked and self.ranked[0].whole else None

    @property
    def leader(self) -> Combination | None:
        """Return the one with the lowest mean so far of what has not diverged, while not all seeds
        are done."""
        known = [c for c in self.ranked if c.losses and not c.count("diverged")]
        return min(known, key=lambda c: fmean(c.losses), default=None)

    @property
    def edges(self) -> list[str]:
        """Return words for each field of which the best value is the smallest or largest tried.

        What diverged was tried, and so was what failed only on some of its seeds.
        """
        if self.best is None:
            return []
        tried = [c for c in self.ranked if c.losses or c.count("diverged")]
        found = []
        for field in self.plan.fields:
            values = {c.values[field] for c in tried}
            numbers = sorted(v for v in values if is_number(v))
            best = self.best.values[field]
            if len(numbers) > 1 and is_number(best) and best in (numbers[0], numbers[-1]):
                side = "smallest" if best == numbers[0] else "largest"
                found.append(f"the best {field}, {value_text(best)}, is the {side} tried")
        return found

    def to_dict(self) -> dict[str, Any] | None:
        """Return the best, for sweep.json."""
        if self.best is None or self.best.loss is None:
            return None
        loss = self.best.loss
        return {
            "values": dict(self.best.values),
            "mean": loss.mean,
            "standard_error": loss.error,
            "seeds": loss.count,
            "on_edge": self.edges,
        }


def summarize_sweep(plan: Plan, outcomes: Mapping[str, Outcome]) -> SweepSummary:
    """Return the combinations of a plan, ranked by what is known so far."""
    members: dict[tuple[Any, ...], list[PlannedRun]] = {}
    for run in plan.runs:
        members.setdefault(tuple(run.values.values()), []).append(run)
    combinations = [
        Combination(runs[0].values, tuple(runs), tuple(outcomes[run.name] for run in runs))
        for runs in members.values()
    ]
    return SweepSummary(plan, tuple(sorted(combinations, key=_rank)))


def _rank(combination: Combination) -> tuple[int, float]:
    mean = fmean(combination.losses) if combination.losses else math.inf
    return 0 if combination.whole else 2 if combination.count("diverged") else 1, mean


def is_number(value: Any) -> bool:
    """Return whether a value of a field has an order and a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def table(summary: SweepSummary) -> Table:
    """Return a row for each combination, best first."""
    header = [*summary.plan.fields, "final loss", "seeds", "outcome"]
    rows = []
    for combination in summary.ranked:
        loss = combination.loss
        rows.append(
            [
                *(value_text(combination.values[field]) for field in summary.plan.fields),
                UNKNOWN if loss is None else loss_text(loss),
                f"{combination.count('finished')}/{len(combination.runs)}",
                ", ".join(_outcome_words(combination, best=combination is summary.best)),
            ]
        )
    return Table(header, rows)


def _outcome_words(combination: Combination, *, best: bool) -> Iterator[str]:
    """Yield what there is to say beside the loss."""
    if best:
        yield "best"
    for kind in ("diverged", "failed", "unfinished"):
        if count := combination.count(kind):
            yield kind if count == len(combination.runs) else f"{count} {kind}"
    if combination.learned_nothing:
        yield "no better than guessing"
