"""Laws of the loss, L = E + A / N^a + B / D^b and L = E + A / C^a, one or many at a time.

N are parameters, D tokens, C FLOPs; FLOPs per token follow a power of N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quintic.scale.solver import Floats

FLOPS_PER_PARAMETER = 6.0
"""FLOPs to train one parameter on one token, forward and backward, where a file does not say them
(Kaplan et al., https://arxiv.org/abs/2001.08361, section 2.1)."""
NO_REST = 1e-6
"""Share of the FLOPs of a token that is of rounding."""

Variable = Literal["parameters", "tokens", "flops"]
LETTERS: dict[Variable, str] = {"parameters": "N", "tokens": "D", "flops": "C"}

Form = tuple[Variable, ...]
"""What the terms of a law are powers of."""
TWO_TERMS: Form = ("parameters", "tokens")
IN_FLOPS: Form = ("flops",)
IN_PARAMETERS: Form = ("parameters",)


@dataclass(frozen=True)
class FlopsPerToken:
    """FLOPs to train a model on a token: factor * N^exponent."""

    factor: float
    exponent: float
    deviation: float
    """The largest factor between that and what a run takes, less 1."""
    rest_factor: float | None = None
    rest_exponent: float = 0.0
    """The power of N that is nearest to what the runs take beside 6 N, which are the products of N:
    head and attention; None where a run takes less than 6 N."""

    def __call__(self, parameters: Floats) -> Floats:
        """Return those of some sizes."""
        flops: Floats = self.factor * parameters**self.exponent
        return flops

    def of_run(self, parameters: float) -> float:
        """Return those of one size, in which the part beside 6 N is a power of N where it can be:
        nearer beyond the runs, where a model takes ever less beside 6 N."""
        if self.rest_factor is None:
            return float(self(np.array(parameters)))
        rest = self.rest_factor * parameters**self.rest_exponent
        return float(FLOPS_PER_PARAMETER * parameters + rest)

    @property
    def formula(self) -> str:
        """Return in words how `of_run` counts."""
        if self.rest_factor is None:
            return f"{self.factor:.3g} N^{self.exponent:.3f}"
        if not self.rest_factor:
            return "6 N"
        return f"6 N + {self.rest_factor:.3g} N^{self.rest_exponent:.3f}"


def flops_per_token(parameters_R: Floats, per_token_R: Floats) -> FlopsPerToken:
    """Return the power of N that is nearest to the runs in logarithms; of one size, 6 N made to
    fit."""
    factor, exponent = nearest_power(parameters_R, per_token_R, of_one=1.0)
    beside_R = np.log(per_token_R / (factor * parameters_R**exponent))
    deviation = float(np.expm1(np.abs(beside_R).max()))
    rest_R = per_token_R - FLOPS_PER_PARAMETER * parameters_R
    if np.abs(rest_R).max() <= NO_REST * per_token_R.max():
        return FlopsPerToken(factor, exponent, deviation, 0.0)
    if (rest_R <= 0).any():
        return FlopsPerToken(factor, exponent, deviation)
    rest = nearest_power(parameters_R, rest_R, of_one=0.5)
    return FlopsPerToken(factor, exponent, deviation, *rest)


def nearest_power(x_R: Floats, y_R: Floats, *, of_one: float) -> tuple[float, float]:
    """Return factor and exponent of the power of x that is nearest to y in logarithms; `of_one` is
    the exponent where all x are one."""
    x, y = np.log(x_R), np.log(y_R)
    spread = x - x.mean()
    exponent = float(spread @ y / (spread @ spread)) if np.ptp(x) > 1e-9 else of_one
    return float(np.exp((y - exponent * x).mean())), exponent


def middle_power(x_R: Floats, y_R: Floats) -> Floats:
    """Return at each x the power of x that goes through the middle of y: its exponent is the median
    of those between pairs (Theil and Sen), which a few wild points do not move."""
    log_x, log_y = np.log(x_R), np.log(y_R)
    first, second = np.triu_indices(len(log_x), 1)
    apart = log_x[second] - log_x[first]
    told = np.abs(apart) > 1e-9
    exponents = (log_y[second] - log_y[first])[told] / apart[told]
    exponent = float(np.median(exponents)) if len(exponents) else 0.0
    level = float(np.median(log_y - exponent * log_x))
    middle: Floats = np.exp(level + exponent * log_x)
    return middle


@dataclass(frozen=True)
class Laws:
    """K laws of one form; M terms."""

    form: Form
    log_e_K: Floats
    log_factor_KM: Floats
    """Logarithms of A and B."""
    exponent_KM: Floats

    def log_loss(self, at: Mapping[Variable, Floats]) -> Floats:
        """Return log L of each law at each of P places, [K, P]."""
        total_KP = self.log_e_K[:, None]
        for j, name in enumerate(self.form):
            log_x_P = np.log(np.atleast_1d(at[name]))
            term_KP = self.log_factor_KM[:, j, None] - self.exponent_KM[:, j, None] * log_x_P
            total_KP = np.logaddexp(total_KP, term_KP)
        return total_KP

    def log_optimal_parameters(self, flops: float, cost: FlopsPerToken) -> Floats:
        """Return log N of the lowest loss for so many FLOPs in all, [K], of the law in N and D.

        With F(N) = k N^s FLOPs a token and D = C / F(N), the derivative of
        A / N^a + B (k N^s / C)^b is zero where N^(a + s b) = (a A) / (s b B) (C / k)^b; with
        6 N FLOPs a token this is equation 4 of Hoffmann et al. (https://arxiv.org/abs/2203.15556).
        """
        (a, b), (log_a, log_b) = self.exponent_KM.T, self.log_factor_KM.T
        sb = cost.exponent * b
        with np.errstate(invalid="ignore", divide="ignore"):  # exponents of draws may be negative
            ratio = np.log(a) + log_a - np.log(sb) - log_b
            log_n_K: Floats = (ratio + b * (np.log(flops) - np.log(cost.factor))) / (a + sb)
        return log_n_K


def named(form: Form) -> list[str]:
    """Return the names of a form's parameters in the order of `values`: E, A, B, a, b."""
    letters = [("A", "a"), ("B", "b")][: len(form)]
    return ["E", *(factor for factor, _ in letters), *(exponent for _, exponent in letters)]


def values(laws: Laws) -> Floats:
    """Return the parameters of each law, [K, P], in the order of `named`."""
    return np.column_stack([np.exp(laws.log_e_K), np.exp(laws.log_factor_KM), laws.exponent_KM])


def formula(form: Form, numbers: Sequence[str] = ()) -> str:
    """Return a law as text; `numbers` stand for its parameters, in the order of `named`."""
    e, *rest = numbers or named(form)
    factors, exponents = rest[: len(form)], rest[len(form) :]
    terms = (
        f"{factor} / {LETTERS[name]}^{exponent}"
        for name, factor, exponent in zip(form, factors, exponents, strict=True)
    )
    return " + ".join([f"L = {e}", *terms])
