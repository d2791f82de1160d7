"""What a fitted law foresees: the loss of a run, and the best size for a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintic.scale.design import ON_LINE, line
from quintic.scale.fit import Fit, Interval
from quintic.scale.law import LETTERS, TWO_TERMS, Variable
from quintic.scale.observations import Count
from quintic.scale.solver import Floats

Place = dict[Variable, float]
"""N, D and C of a run."""

PROFILE_SPAN = 3.0
"""Factor to either side of the best size that a profile has at the least."""
NO_VARIANCE = 1e-20
"""Variance of a logarithm that is of rounding."""
NEAR_BUDGET = 0.3
"""Difference of log C up to which runs are of one budget, in pictures."""
POINTS = 41
"""Places of a curve."""


@dataclass(frozen=True)
class Prediction:
    """A run that was not trained, as far as the law tells."""

    label: str
    count: Count
    place: Place
    law: Interval
    """Its loss in the mean over seeds."""
    run: Interval
    """The loss of one run."""
    beyond: tuple[str, ...]
    """In which way the place is beyond the runs; empty within."""
    carried: bool
    """False beyond the runs of a fit that leaves an exponent untold."""
    flops_from: str | None
    """How the FLOPs of a token follow from N, where they were not given."""


@dataclass(frozen=True)
class Optimum:
    """The size and the tokens of the lowest loss for a budget."""

    count: Count
    flops: float
    parameters: Interval
    tokens: Interval
    loss: Interval
    """In the mean over seeds."""
    beyond: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """The loss by the law at some places, with the interval of its mean over seeds."""

    parameters: tuple[float, ...]
    tokens: tuple[float, ...]
    flops: tuple[float, ...]
    loss: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class HelpfulRun:
    """The run, no dearer than the dearest there is, that would narrow an interval most."""

    place: Place
    of: str
    """What the interval is of."""
    width: float
    """Width of the interval with it, as a share of that without."""


def predict(fit: Fit, label: str, place: Place, seed: int = 0) -> Prediction:
    """Return what the law foresees of a run; `place` without FLOPs takes those that follow from the
    runs' own (`FlopsPerToken.of_run`)."""
    flops_from = None
    if "flops" not in place:
        flops_from = fit.cost.formula
        place = {**place, "flops": fit.cost.of_run(place["parameters"]) * place["tokens"]}
    reach = tuple(beyond(fit, place))
    return Prediction(
        label,
        fit.count,
        place,
        fit.predicted(place),
        fit.predicted_run(place, seed),
        reach,
        not (reach and fit.untold),
        flops_from,
    )


def optimum(fit: Fit, flops: float) -> Optimum:
    """Return the best size for a budget, by the law in N and D; D = C / F(N)."""
    log_n = float(fit.law.log_optimal_parameters(flops, fit.cost)[0])
    log_n_K = fit.draws.log_optimal_parameters(flops, fit.cost)
    place = _at_budget(fit, flops, math.exp(log_n))
    log_d, log_d_K = (_log_tokens(fit, flops, n) for n in (log_n, log_n_K))
    losses_K = _losses(fit, log_n_K, log_d_K)
    return Optimum(
        fit.count,
        flops,
        fit.interval(place["parameters"], np.exp(log_n_K)),
        fit.interval(math.exp(log_d), np.exp(log_d_K)),
        fit.interval(fit.predicted(place).estimate, losses_K),
        tuple(beyond(fit, place)),
    )


def growth(fit: Fit) -> Interval:
    """Return the exponent with which the best size grows with the budget, b / (a + s b)."""
    (a,), (b,) = fit.law.exponent_KM.T
    a_K, b_K = fit.draws.exponent_KM.T
    s = fit.cost.exponent
    return fit.interval(float(b / (a + s * b)), b_K / (a_K + s * b_K), positive=False)


def profile(fit: Fit, flops: float) -> Curve:
    """Return the loss at sizes around the best for a budget, and as far as runs of it reach (an
    IsoFLOP profile)."""
    best = math.exp(float(fit.law.log_optimal_parameters(flops, fit.cost)[0]))
    runs = fit.observations
    near = np.abs(np.log(runs.flops_R / flops)) < NEAR_BUDGET
    reached = [*runs.parameters(fit.count)[near], best / PROFILE_SPAN, best * PROFILE_SPAN]
    sizes = np.geomspace(min(reached), max(reached), POINTS)
    return _curve(fit, [_at_budget(fit, flops, float(size)) for size in sizes])


def frontier(fit: Fit, most_flops: float) -> Curve:
    """Return the loss of the best size from the cheapest run's FLOPs to so many; of a law of one
    term, that on the line of the runs."""
    budgets = np.geomspace(fit.observations.flops_R.min(), most_flops, POINTS)
    return _curve(fit, [_larger(fit, float(budget)) for budget in budgets])


def _curve(fit: Fit, places: list[Place]) -> Curve:
    found = [fit.predicted(place) for place in places]
    return Curve(
        tuple(place["parameters"] for place in places),
        tuple(place["tokens"] for place in places),
        tuple(place["flops"] for place in places),
        tuple(interval.estimate for interval in found),
        tuple(interval.low for interval in found),
        tuple(interval.high for interval in found),
    )


def beyond(fit: Fit, place: Place) -> list[str]:
    """Return in words how far a place is from what the runs reach, in N, D, C and D / N; empty for
    one among them."""
    runs = fit.observations
    n_R = runs.parameters(fit.count)
    known: list[tuple[str, Floats, float]] = [
        ("N", n_R, place["parameters"]),
        ("D", runs.tokens_R, place["tokens"]),
        ("C", runs.flops_R, place["flops"]),
    ]
    if fit.form == TWO_TERMS:
        ratio = place["tokens"] / place["parameters"]
        known.append(("D / N", runs.tokens_R / n_R, ratio))
    words = []
    for name, values_R, value in known:
        if value > 1.001 * values_R.max():
            words.append(f"{name} is {value / values_R.max():.3g} times the largest")
        elif value < 0.999 * values_R.min():
            words.append(f"{name} is {value / values_R.min():.3g} times the smallest")
    if fit.form != TWO_TERMS:
        on_line = line(runs, fit.count).tokens(place["parameters"])
        off = place["tokens"] / on_line
        if not 1 / ON_LINE < off < ON_LINE:
            words.append(f"D is {off:.3g} times what their line has at this N")
    return words


def helpful_run(fit: Fit, target: Prediction | Optimum | None) -> HelpfulRun | None:
    """Return the run that would narrow most the interval of a target: a prediction, the best size
    for a budget, or without either the loss at the best size for ten times the dearest run.

    The draws say how what a run would show hangs together with the target: as of variables with a
    normal distribution, its variance falls by their covariance squared over the variance of what
    the run shows, the noise of one run included. None where no draw tells.
    """
    runs = fit.observations
    dearest = float(runs.flops_R.max())
    if isinstance(target, Optimum):
        of = f"the best size for {target.flops:.3g} FLOPs"
        target_K = fit.draws.log_optimal_parameters(target.flops, fit.cost)
    elif isinstance(target, Prediction):
        of = f"the loss of {target.label}"
        target_K = fit.draws.log_loss(_arrays(target.place))[:, 0]
    else:
        of = "the loss at ten times the FLOPs of the dearest run"
        target_K = fit.draws.log_loss(_arrays(_larger(fit, 10 * dearest)))[:, 0]
    candidates = [place for place in _candidates(fit) if place["flops"] <= 1.001 * dearest]
    shown_KP = fit.draws.log_loss(
        {name: np.array([place[name] for place in candidates]) for name in LETTERS}
    )
    sound_K = np.isfinite(target_K) & np.isfinite(shown_KP).all(1)
    if sound_K.sum() < 3:
        return None
    target_K, shown_KP = (_clipped(values[sound_K]) for values in (target_K, shown_KP))
    if target_K.var() < NO_VARIANCE:  # of runs without any noise
        return None
    target_K = target_K - target_K.mean()
    shown_KP = shown_KP - shown_KP.mean(0)
    covariance_P = target_K @ shown_KP / len(target_K)
    known_P = covariance_P**2 / (shown_KP.var(0) + fit.noise.var())
    best = int(known_P.argmax())
    width = math.sqrt(max(0.0, 1 - float(known_P[best] / target_K.var())))
    return HelpfulRun(candidates[best], of, width)


def _candidates(fit: Fit) -> list[Place]:
    """Return sizes from the smallest to twice the largest on tokens from the fewest to twice the
    most, with no more or fewer tokens a parameter than some run has; of a law of one
    term, those on the line of the runs."""
    runs = fit.observations
    n_R = runs.parameters(fit.count)
    sizes = np.geomspace(n_R.min(), 2 * n_R.max(), 13)
    if fit.form == TWO_TERMS:
        lengths = np.geomspace(runs.tokens_R.min(), 2 * runs.tokens_R.max(), 13)
        ratio_R = runs.tokens_R / n_R
        pairs = [
            (float(n), float(d))
            for n in sizes
            for d in lengths
            if 0.99 * ratio_R.min() <= d / n <= 1.01 * ratio_R.max()
        ]
    else:
        along = line(runs, fit.count)
        pairs = [(float(n), along.tokens(float(n))) for n in sizes]
    return [
        {"parameters": n, "tokens": d, "flops": float(fit.cost(np.array(n))) * d} for n, d in pairs
    ]


def _larger(fit: Fit, flops: float) -> Place:
    """Return the best size for a budget; of a law of one term, that on the line of the runs."""
    if fit.form == TWO_TERMS:
        n = math.exp(float(fit.law.log_optimal_parameters(flops, fit.cost)[0]))
        return _at_budget(fit, flops, n)
    along = line(fit.observations, fit.count)
    power = fit.cost.exponent + along.slope
    n = (flops / (fit.cost.factor * along.factor)) ** (1 / power)
    return {"parameters": n, "tokens": along.tokens(n), "flops": flops}


def _at_budget(fit: Fit, flops: float, parameters: float) -> Place:
    tokens = flops / float(fit.cost(np.array(parameters)))
    return {"parameters": parameters, "tokens": tokens, "flops": flops}


def _log_tokens(fit: Fit, flops: float, log_parameters: Any) -> Any:
    return math.log(flops) - math.log(fit.cost.factor) - fit.cost.exponent * log_parameters


def _losses(fit: Fit, log_n_K: Floats, log_d_K: Floats) -> Floats:
    """Return the loss of each draw's law at a place of its own."""
    (a, b), (log_a, log_b) = fit.draws.exponent_KM.T, fit.draws.log_factor_KM.T
    terms = np.stack([fit.draws.log_e_K, log_a - a * log_n_K, log_b - b * log_d_K])
    total: Floats = np.exp(terms).sum(0)
    return total


def _arrays(place: Place) -> dict[Variable, Floats]:
    return {name: np.array([value]) for name, value in place.items()}


def _clipped(values: Floats) -> Floats:
    """Return draws with the outermost hundredth pulled in: a few of them would be all variance."""
    low, high = np.quantile(values, [0.005, 0.995], axis=0)
    return np.clip(values, low, high)
