"""Finished runs as what a law is fitted to: sizes, tokens, FLOPs and final losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quintic.errors import QuinticError
from quintic.scale.solver import Floats

Count = Literal["all", "blocks", "given"]
"""How parameters are counted."""
HIGHEST_LOSS = 20.0
"""In nats per token; guessing evenly among a million tokens has 13.8."""
COUNTS: dict[Count, str] = {
    "all": "all parameters, a tied head once",
    "blocks": "the matrices of the blocks, without embeddings and head",
    "given": "the parameters that the file gives",
}


@dataclass(frozen=True)
class Observation:
    """One finished run."""

    label: str
    parameters: dict[Count, float]
    tokens: float
    flops: float
    """To train it in all."""
    loss: float
    """Final validation loss in nats per token."""
    group: int
    """The same number for runs that differ in nothing but the seed."""
    seed: int | None = None


class Observations:
    """Runs as arrays, in one order.

    R runs; `group_R` numbers the groups from 0 without a gap.
    """

    def __init__(self, runs: Sequence[Observation], source: str) -> None:
        self.runs = list(runs)
        self.source = source
        """Where they come from, in words."""
        self.counts: list[Count] = list(runs[0].parameters) if runs else []
        self.tokens_R = np.array([run.tokens for run in runs])
        self.flops_R = np.array([run.flops for run in runs])
        self.loss_R = np.array([run.loss for run in runs])
        _, group_R = np.unique([run.group for run in runs], return_inverse=True)
        self.group_R = group_R
        self.groups = int(group_R.max()) + 1 if runs else 0

    def __len__(self) -> int:
        return len(self.runs)

    def parameters(self, count: Count) -> Floats:
        """Return the parameters of each run by one way of counting."""
        return np.array([run.parameters[count] for run in self.runs])

    def without_highest(self, number: int) -> Observations:
        """Return these without so many runs of the highest loss.

        Raises `QuinticError` where none would be left.
        """
        if not 0 <= number < len(self):
            raise QuinticError(
                f"--drop-highest-loss is {number}: it must be from 0 to {len(self) - 1}, one less "
                f"than there are runs"
            )
        if not number:
            return self
        bound = sorted(run.loss for run in self.runs)[-number]
        over = [run for run in self.runs if run.loss >= bound]
        if len(over) != number:
            raise QuinticError(
                f"--drop-highest-loss {number} would leave out some runs of the loss {bound:g} and "
                f"keep others: there are {len(over)} runs of that loss or a higher one"
            )
        return Observations([run for run in self.runs if run.loss < bound], self.source)


def check_numbers(run: Observation) -> Observation:
    """Return a run whose numbers are all positive, and whose loss one can have; raises
    `QuinticError` for another."""
    numbers = {
        **{f"parameters ({COUNTS[count]})": n for count, n in run.parameters.items()},
        "tokens": run.tokens,
        "FLOPs": run.flops,
        "loss": run.loss,
    }
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise QuinticError(
                f"{run.label}: {name} is {value:g}: it must be a positive number; repair it or "
                "leave the run out"
            )
    if run.loss > HIGHEST_LOSS:
        raise QuinticError(
            f"{run.label}: loss is {run.loss:g}, more than guessing has among all tokens of any "
            "vocabulary: a loss is in nats per token; of a perplexity give the logarithm"
        )
    return run
