"""What a sweep found: the mean over seeds of each combination, and which is best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quintic.compare.statistics import Summary, summarize
from quintic.compare.table import UNKNOWN, Table
from quintic.config import Config
from quintic.sweep.plan import Plan, PlannedRun, Values, combination_name, value_text
from quintic.sweep.record import Outcome


@dataclass(frozen=True)
class Combination:
    """The runs that differ only in the seed."""

    values: Values
    runs: tuple[PlannedRun, ...]
    outcomes: tuple[Outcome, ...]

    def count(self, kind: str) -> int:
        """Runs with an outcome of this kind."""
        return sum(outcome.kind == kind for outcome in self.outcomes)

    @property
    def losses(self) -> list[float]:
        """Final validation losses of the runs that finished."""
        return [o.val_loss for o in self.outcomes if o.val_loss is not None]

    @property
    def loss(self) -> Summary | None:
        """Over the seeds that finished; None where none did."""
        return summarize(self.losses) if self.losses else None

    @property
    def name(self) -> str:
        """The values in words."""
        return combination_name(self.values)

    @property
    def config(self) -> Config:
        """As a recipe, with the first seed."""
        return self.runs[0].config

    @property
    def whole(self) -> bool:
        """Every seed finished, so that the mean may be compared."""
        return self.count("finished") == len(self.runs)


@dataclass(frozen=True)
class Found:
    """The combinations of a sweep, best first: those with all seeds, then those of which some are
    missing, those of which some diverged, and those without any loss."""

    plan: Plan
    ranked: tuple[Combination, ...]

    @property
    def best(self) -> Combination | None:
        """The lowest mean among combinations of which every seed finished."""
        return self.ranked[0] if self.ranked and self.ranked[0].whole else None

    @property
    def leader(self) -> Combination | None:
        """The lowest mean so far of what has not diverged, while not all seeds are done."""
        known = [(loss.mean, i) for i, c in enumerate(self.ranked) if (loss := c.loss) is not None]
        known = [(mean, i) for mean, i in known if not self.ranked[i].count("diverged")]
        return self.ranked[min(known)[1]] if known else None

    @property
    def edges(self) -> list[str]:
        """In words, for each field of which the best value is the smallest or largest tried.

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
        """The best, for sweep.json."""
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


def summarize_sweep(plan: Plan, outcomes: Mapping[str, Outcome]) -> Found:
    """The combinations of a plan, ranked by what is known so far."""
    members: dict[tuple[Any, ...], list[PlannedRun]] = {}
    for run in plan.runs:
        members.setdefault(tuple(run.values.values()), []).append(run)
    combinations = [
        Combination(runs[0].values, tuple(runs), tuple(outcomes[run.name] for run in runs))
        for runs in members.values()
    ]
    return Found(plan, tuple(sorted(combinations, key=_rank)))


def _rank(combination: Combination) -> tuple[int, float]:
    loss = combination.loss
    if combination.whole and loss is not None:
        return 0, loss.mean
    if combination.count("diverged"):
        return 2, loss.mean if loss is not None else float("inf")
    return 1, loss.mean if loss is not None else float("inf")


def is_number(value: Any) -> bool:
    """Whether a value of a field has an order and a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def table(found: Found) -> Table:
    """A row for each combination, best first."""
    header = [*found.plan.fields, "final loss", "seeds", "outcome"]
    rows = []
    for combination in found.ranked:
        loss = combination.loss
        text = UNKNOWN if loss is None else f"{loss.mean:.4f}"
        if loss is not None and loss.error is not None:
            text += f" ± {loss.error:.4f}"
        rows.append(
            [
                *(value_text(combination.values[field]) for field in found.plan.fields),
                text,
                f"{combination.count('finished')}/{len(combination.runs)}",
                "best" if combination is found.best else _outcome_text(combination),
            ]
        )
    return Table(header, rows)


def _outcome_text(combination: Combination) -> str:
    """What there is besides runs that finished."""
    counts = {kind: combination.count(kind) for kind in ("diverged", "failed", "unfinished")}
    return ", ".join(
        kind if count == len(combination.runs) else f"{count} {kind}"
        for kind, count in counts.items()
        if count
    )
