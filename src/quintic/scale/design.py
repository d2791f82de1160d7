"""Whether runs can carry a law, which one, and what to train where they cannot."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quintic.console import short_count
from quintic.errors import QuinticError, counted
from quintic.scale.law import (
    IN_FLOPS,
    IN_PARAMETERS,
    LETTERS,
    TWO_TERMS,
    Form,
    Variable,
    nearest_power,
)
from quintic.scale.observations import Count, Observations
from quintic.scale.solver import Floats

LawName = Literal["auto", "two-term", "flops", "parameters"]
FORMS: dict[LawName, Form] = {
    "two-term": TWO_TERMS,
    "flops": IN_FLOPS,
    "parameters": IN_PARAMETERS,
}

ONE_STEP = 1.05
"""Factor from which on two sizes, or lengths, are two."""
ON_LINE = 2.0
"""Factor between the most and the fewest tokens, beside a power of N, up to which D follows N."""
FEWEST_VALUES = {TWO_TERMS: 3, IN_FLOPS: 5, IN_PARAMETERS: 5}
"""Different values of what each term is a power of."""
FEWEST_POINTS = 7
"""Different pairs of N and D for the law of two terms: its parameters are five."""


@dataclass(frozen=True)
class Line:
    """The power of N that the tokens are nearest to: D = factor * N^slope."""

    factor: float
    slope: float
    spread: float
    """The most tokens over the fewest, beside it."""

    def tokens(self, parameters: float) -> float:
        """Return the tokens of a size on the line."""
        return float(self.factor * parameters**self.slope)


def line(observations: Observations, count: Count) -> Line:
    """Return the line, in logarithms, that the runs lie along."""
    n_R, d_R = observations.parameters(count), observations.tokens_R
    factor, slope = nearest_power(n_R, d_R, of_one=0.0)
    beside_R = d_R / n_R**slope
    return Line(factor, slope, float(beside_R.max() / beside_R.min()))


def choose_form(observations: Observations, count: Count, law: LawName = "auto") -> Form:
    """Return the form of law that the runs can carry; `auto` is the law in N and D unless D follows
    N in all of them, and then the one in C.

    Raises `QuinticError`, with what to train, where they cannot carry it.
    """
    along = line(observations, count)
    follows = along.spread < ON_LINE
    form = FORMS[("flops" if follows else "two-term") if law == "auto" else law]
    sizes = _values(observations.parameters(count))
    if follows and sizes > 1 and _values(observations.flops_R, ON_LINE) == 1:
        low, high = observations.flops_R.min(), observations.flops_R.max()
        raise QuinticError(
            f"{observations.source}: all have one budget, {low:.3g} to {high:.3g} FLOPs, along "
            "which N and D trade places, so no law of either can be told: train the same sizes at "
            f"a quarter and at 4 times the tokens as well"
        )
    if form == TWO_TERMS and follows and sizes > 1:
        raise QuinticError(
            f"{observations.source}: all lie on one line, D = {along.factor:.3g} "
            f"N^{along.slope:.2f} to within a factor of {along.spread:.2f}, so what N does cannot "
            "be told from what D does: fit the one-term law with --law flops, or train the smaller "
            "half of the sizes on a quarter and on 4 times the tokens as well"
        )
    if len(form) == 1 and not follows:
        raise QuinticError(
            f"{observations.source}: D does not follow N, {along.spread:.3g} times as many tokens "
            "with one run as with another of its size, so the law of one term would take that for "
            "noise: fit --law two-term, or name the runs on one line alone"
        )
    values: dict[Variable, Floats] = {
        "parameters": observations.parameters(count),
        "tokens": observations.tokens_R,
        "flops": observations.flops_R,
    }
    what = {"parameters": "size", "tokens": "number of tokens", "flops": "budget"}
    for name in form:
        found, least = _values(values[name]), FEWEST_VALUES[form]
        if found < least:
            ends = (values[name].min(), values[name].max())
            low, high = (f"{end:.3g}" if name == "flops" else short_count(end) for end in ends)
            raise QuinticError(
                f"{observations.source} of {counted(found, what[name], _plural(what[name]))} "
                f"({LETTERS[name]} {low if found == 1 else f'{low} to {high}'}): the law in "
                f"{' and '.join(LETTERS[letter] for letter in form)} needs {least} or more, each "
                f"twice the one before or further; train {least - found} more"
            )
    if form == TWO_TERMS:
        pairs = len({(run.parameters[count], run.tokens) for run in observations.runs})
        if pairs < FEWEST_POINTS:
            raise QuinticError(
                f"{observations.source}: {pairs} pairs of N and D, and the law's parameters are "
                f"five: it needs {FEWEST_POINTS} or more; train {FEWEST_POINTS - pairs} more, such "
                "as the sizes that are there on a quarter or on 4 times the tokens"
            )
    return form


def _values(values_R: Floats, step: float = ONE_STEP) -> int:
    """Return how many different values there are: groups between which there is such a step."""
    ordered = np.sort(values_R)
    return 1 + sum(bool(after > step * before) for before, after in itertools.pairwise(ordered))


def _plural(noun: str) -> str:
    return "numbers of tokens" if noun.startswith("number") else f"{noun}s"
