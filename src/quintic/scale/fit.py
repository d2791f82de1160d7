"""A law fitted to runs: the best of many starts, and the same for draws of the runs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quintic.compare.statistics import CONFIDENCE
from quintic.errors import QuinticError
from quintic.scale.law import (
    LETTERS,
    FlopsPerToken,
    Form,
    Laws,
    Variable,
    flops_per_token,
    formula,
    named,
    values,
)
from quintic.scale.observations import Count, Observations
from quintic.scale.solver import Floats, Solved, solve

EXPONENTS = (0.1, 0.2, 0.4, 0.8, 1.6)
IRREDUCIBLE = (0.25, 0.5, 0.75, 0.95)
"""E over the lowest loss."""
SHARES = (0.1, 0.5, 0.9)
"""The part of the first term in what is left of the loss, in the middle of the runs."""

FROM_WEIGHTS = 100
"""Groups from which on a draw takes groups with replacement; of fewer it weights each."""
RESIDUALS = 10
"""Residuals that each draw gets for the loss of one run."""
EARLY_STEPS, FOLLOWED = 20, 30
"""Steps of every start, and how many of the lowest are then followed to their ends."""
ALIKE = 1e-6
"""Difference of parameters, in logarithms, up to which two starts have come to one end."""
OTHER_ENDS = 2
"""Ends of the runs' own fit, besides the best, that each draw starts from too."""
NEXT_TO_NOTHING, STEEPEST = 0.01, 3.0
"""The part of a term in the loss in the middle of the runs, under which it vanishes, and the
exponent from which on it is a wall."""
MOST_DEGENERATE = 1 / 3
"""Share of draws with such a law from which on the runs do not carry it."""
FAR, LEAST_FAR = 6.0, 0.02
"""Robust standard deviations beside the law from which on a run is far from it, and the least share
of the loss."""
TO_DEVIATION = 1.4826
"""Standard deviation over the median absolute one, of a normal distribution."""
MOST_NAMED = 3


@dataclass(frozen=True)
class Interval:
    """An estimate with its standard error and interval."""

    estimate: float
    error: float
    """Standard deviation over the draws, but for those in whose law a term vanishes."""
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A law, and those of the draws."""

    form: Form
    count: Count
    law: Laws
    """One."""
    draws: Laws
    observations: Observations
    cost: FlopsPerToken
    residual_R: Floats
    """log L less the law's."""
    starts: int
    followed: int
    at_best: int
    """Followed starts that came to the best end."""
    sound_K: NDArray[np.bool_]
    """False for draws in whose law a term vanishes, rises or is a wall."""

    @property
    def degenerate(self) -> int:
        """Return how many draws are not sound."""
        return int((~self.sound_K).sum())

    @property
    def widening(self) -> float:
        """Return G / (G - P) of G groups and P parameters.

        The law is drawn to each run by a share P / G in the mean, so that residuals are too small
        by the root of 1 - P / G, and the estimate without a run lies further off by as much again;
        as in the jackknife (MacKinnon and White, Journal of Econometrics 29, 1985: HC3), intervals
        of few runs are too short without.
        """
        groups, parameters = self.observations.groups, 2 * len(self.form) + 1
        return groups / (groups - parameters)

    @property
    def noise(self) -> Floats:
        """Return the residuals, as wide as those of runs that no law was fitted to."""
        free = len(self.residual_R) - 2 * len(self.form) - 1
        centred: Floats = self.residual_R - np.median(self.residual_R)
        return centred * math.sqrt(len(self.residual_R) / free)

    def interval(self, estimate: float, draws_K: Floats, *, positive: bool = True) -> Interval:
        """Return the interval of something that is `estimate` by the law and this by the draws.

        Percentiles of the draws, widened about the estimate; in logarithms where it is positive.
        """
        to, back = (np.log, np.exp) if positive else (np.asarray, np.asarray)
        tail = (1 - CONFIDENCE) / 2
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            middle = to(estimate)
            known = to(draws_K)[~np.isnan(draws_K)]
            ends = np.quantile(known, [tail, 1 - tail], method="closest_observation")
            low, high = back(middle + self.widening * (ends - middle))
            sound_K = np.repeat(self.sound_K, len(draws_K) // len(self.sound_K))
            error = self.widening * np.std(draws_K[sound_K & np.isfinite(draws_K)])
        return Interval(float(estimate), float(error), float(low), float(high))

    def parameters(self) -> dict[str, Interval]:
        """Return each parameter of the law with its interval; that of E ends at the lowest loss."""
        (estimates,), draws_KP = values(self.law), values(self.draws)
        found = {
            name: self.interval(estimates[p], draws_KP[:, p], positive=name.isupper())
            for p, name in enumerate(named(self.form))
        }
        # No run can have ended below E, and widening knows nothing of that.
        e, lowest = found["E"], float(self.observations.loss_R.min())
        return {**found, "E": replace(e, high=max(e.estimate, min(e.high, lowest)))}

    @functools.cached_property
    def untold(self) -> dict[str, Interval]:
        """Return the exponents whose interval holds 0: the runs do not tell how the loss falls with
        what they are of, or whether it does, so nothing beyond them follows, nor a best size."""
        return {
            name: value
            for name, value in self.parameters().items()
            if name.islower() and value.low <= 0
        }

    def predicted(self, at: Mapping[Variable, float]) -> Interval:
        """Return the loss that the law foresees somewhere, in the mean over seeds."""
        place = {name: np.array([value]) for name, value in at.items()}
        return self.interval(
            math.exp(self.law.log_loss(place)[0, 0]), np.exp(self.draws.log_loss(place)[:, 0])
        )

    def predicted_run(self, at: Mapping[Variable, float], seed: int = 0) -> Interval:
        """Return the same for one run, whose loss lies beside the law as those of the fit do.

        What a draw foresees gets residuals of runs, drawn at random, with either sign.
        """
        place = {name: np.array([value]) for name, value in at.items()}
        estimate = self.law.log_loss(place)[0, 0]
        away_K = self.draws.log_loss(place)[:, 0] - estimate
        away_K = np.repeat(away_K, RESIDUALS)
        both_signs = np.concatenate([self.noise, -self.noise])
        noise_K = np.random.default_rng(seed).choice(both_signs, len(away_K))
        # interval() widens all that it is given, and the noise has its width.
        total_K = away_K + noise_K / self.widening
        return self.interval(math.exp(estimate), np.exp(estimate + total_K))


def fit(
    observations: Observations, form: Form, count: Count, *, draws: int = 2000, seed: int = 0
) -> Fit:
    """Fit a law to runs by all starts of a grid, and to `draws` draws of their groups.

    Raises `QuinticError` where the draws show that the runs do not carry the law.
    """
    log_x_MR, log_loss_R = variables(observations, form, count), np.log(observations.loss_R)
    middle_M = log_x_MR.mean(1)
    x_MR = log_x_MR - middle_M[:, None]
    starts_KP = starts(x_MR, log_loss_R)
    ones = np.ones((1, len(log_loss_R)))
    early = solve(starts_KP, ones, x_MR, log_loss_R, EARLY_STEPS)
    first = np.argsort(early.objective_K, kind="stable")[:FOLLOWED]
    ends = solve(early.parameters_KP[first], ones, x_MR, log_loss_R)
    from_KP, at_best = _ends(ends)
    law = _laws(from_KP[:1], form, middle_M)
    if not (law.exponent_KM > 0).all():
        rising = next(LETTERS[name] for j, name in enumerate(form) if law.exponent_KM[0, j] <= 0)
        raise QuinticError(
            f"{observations.source}: their loss does not fall with {rising} where all else is "
            "equal, which no law of it can say: are the learning rates of each size its own?"
        )
    residual_R = log_loss_R - law.log_loss(dict(zip(form, np.exp(log_x_MR), strict=True)))[0]
    weights_KR = draw_weights(observations, draws, seed)
    drawn = solve_draws(from_KP, weights_KR, x_MR, log_loss_R)
    sound_K = _sound(drawn.parameters_KP)
    degenerate = int((~sound_K).sum())
    if degenerate > MOST_DEGENERATE * draws:
        far = far_runs(observations, residual_R)
        check = f"check the loss of {far_words(far)} beside the law, or " if far else ""
        raise QuinticError(
            f"{observations.source}: they do not carry {formula(form)}, of which in "
            f"{degenerate:,} of {draws:,} draws of them a term vanishes: {check}train sizes, or "
            "numbers of tokens, further apart, or more of them"
        )
    return Fit(
        form=form,
        count=count,
        law=law,
        draws=_laws(drawn.parameters_KP, form, middle_M),
        observations=observations,
        cost=flops_per_token(
            observations.parameters(count), observations.flops_R / observations.tokens_R
        ),
        residual_R=residual_R,
        starts=len(starts_KP),
        followed=len(first),
        at_best=at_best,
        sound_K=sound_K,
    )


def far_runs(observations: Observations, residual_R: Floats) -> list[tuple[str, float]]:
    """Return label and share of the loss of the runs that lie far beside their law, the furthest
    first."""
    off_R = np.expm1(residual_R)
    away_R = off_R - np.median(off_R)
    bound = max(FAR * TO_DEVIATION * float(np.median(np.abs(away_R))), LEAST_FAR)
    furthest = np.argsort(-np.abs(away_R), kind="stable")
    return [
        (observations.runs[r].label, float(off_R[r])) for r in furthest if abs(away_R[r]) > bound
    ]


def untold_words(untold: Mapping[str, Interval]) -> str:
    """Return in words which exponents' intervals hold 0, of which there is at least one."""
    named = (f"{name} ({value.low:.3g} to {value.high:.3g})" for name, value in untold.items())
    return f"the interval of {' and that of '.join(named)} holds 0"


def far_words(far: Sequence[tuple[str, float]]) -> str:
    """Return the names of runs that are far from their law, and by how much."""
    named = ", ".join(f"{label} ({off:+.1%})" for label, off in far[:MOST_NAMED])
    return named + (f" and {len(far) - MOST_NAMED} more" if len(far) > MOST_NAMED else "")


def variables(observations: Observations, form: Form, count: Count) -> Floats:
    """Return the logarithms of what a law's terms are powers of, [M, R]."""
    known: dict[Variable, Floats] = {
        "parameters": observations.parameters(count),
        "tokens": observations.tokens_R,
        "flops": observations.flops_R,
    }
    return np.log(np.stack([known[name] for name in form]))


def starts(x_MR: Floats, log_loss_R: Floats) -> Floats:
    """Return a grid of starts, [K, P], all of which go through the middle of the runs."""
    lowest, middle = math.exp(log_loss_R.min()), math.exp(log_loss_R.mean())
    shares = [(1.0,)] if len(x_MR) == 1 else [(share, 1 - share) for share in SHARES]
    return np.array(
        [
            [
                *(math.log((middle - part * lowest) * share) for share in split),
                *exponents,
                math.log(part * lowest),
            ]
            for exponents in itertools.product(EXPONENTS, repeat=len(x_MR))
            for part in IRREDUCIBLE
            for split in shares
        ]
    )


def draw_weights(observations: Observations, draws: int, seed: int) -> Floats:
    """Return how much each run counts in each draw, [K, R]; seeds of a group count alike.

    Of many groups each draw takes as many with replacement (Efron, Annals of Statistics 7, 1979),
    as the re-analysis of Hoffmann et al.'s runs does (https://arxiv.org/abs/2404.10102). Of few,
    such a draw often has too few sizes for a law; so each group has a weight from an exponential
    distribution (Rubin, The Bayesian Bootstrap, Annals of Statistics 9, 1981). To draw seeds within
    groups too would count their noise twice (docs/scaling.md).
    """
    generator, groups = np.random.default_rng(seed), observations.groups
    if groups >= FROM_WEIGHTS:
        weights_KG = generator.multinomial(groups, np.full(groups, 1 / groups), draws).astype(float)
    else:
        weights_KG = generator.exponential(size=(draws, groups))
        weights_KG *= groups / weights_KG.sum(1, keepdims=True)
    return weights_KG[:, observations.group_R]


def solve_draws(from_KP: Floats, weights_KR: Floats, x_MR: Floats, log_loss_R: Floats) -> Solved:
    """Return for each draw the best end of some starts."""
    draws, each = len(weights_KR), len(from_KP)
    found = solve(
        np.tile(from_KP, (draws, 1)), np.repeat(weights_KR, each, axis=0), x_MR, log_loss_R
    )
    best = found.objective_K.reshape(draws, each).argmin(1) + each * np.arange(draws)
    return Solved(found.parameters_KP[best], found.objective_K[best], found.done_K[best])


def _ends(ends: Solved) -> tuple[Floats, int]:
    """Return the best end and some others that differ from it, best first, and how many starts came
    to the best."""
    order = np.argsort(ends.objective_K, kind="stable")
    found = [ends.parameters_KP[order[0]]]
    at_best = int((np.abs(ends.parameters_KP - found[0]).max(1) < ALIKE).sum())
    for k in order:
        if len(found) <= OTHER_ENDS and ends.done_K[k]:
            end = ends.parameters_KP[k]
            if min(np.abs(end - other).max() for other in found) > ALIKE:
                found.append(end)
    return np.stack(found), at_best


def _sound(parameters_KP: Floats) -> NDArray[np.bool_]:
    """Return True for fits in which no term vanishes, rises or is a wall."""
    terms = parameters_KP.shape[1] // 2
    log_parts = parameters_KP[:, [*range(terms), -1]]
    part_K = np.exp(log_parts[:, :-1].min(1) - np.logaddexp.reduce(log_parts, axis=1))
    exponent_KM = parameters_KP[:, terms:-1]
    falling_K = (exponent_KM.max(1) <= STEEPEST) & (exponent_KM.min(1) > 0)
    sound_K: NDArray[np.bool_] = (part_K >= NEXT_TO_NOTHING) & falling_K
    return sound_K


def _laws(parameters_KP: Floats, form: Form, middle_M: Floats) -> Laws:
    """Return laws from the parameters of fits in which x was centred at `middle_M`."""
    terms = len(form)
    exponent_KM = parameters_KP[:, terms : 2 * terms]
    return Laws(
        form,
        parameters_KP[:, -1],
        parameters_KP[:, :terms] + exponent_KM * middle_M,
        exponent_KM,
    )
