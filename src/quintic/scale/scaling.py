"""All results of `quintic scale`: fits, predictions, the best sizes, and what to train next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quintic.errors import QuinticError
from quintic.scale.design import LawName, choose_form
from quintic.scale.fit import Fit, fit, untold_words
from quintic.scale.forecast import (
    NEAR_BUDGET,
    Curve,
    HelpfulRun,
    Optimum,
    Place,
    Prediction,
    frontier,
    growth,
    helpful_run,
    optimum,
    predict,
    profile,
)
from quintic.scale.law import TWO_TERMS, formula
from quintic.scale.observations import COUNTS, Count, Observations

FORMAT = 1
PROFILES, APART = 5, 3.0
"""Most budgets of the profiles, besides those asked for, and the factor between two."""


@dataclass(frozen=True)
class Target:
    """A run to foresee, with its parameters by each way of counting that is known of it."""

    label: str
    parameters: dict[Count, float]
    tokens: float
    flops: float | None = None
    """None: those that follow from the runs'."""


@dataclass(frozen=True)
class Scaling:
    """A law for each way of counting parameters, the chosen one first, and what follows from it."""

    fits: tuple[Fit, ...]
    predictions: tuple[Prediction, ...]
    optima: tuple[Optimum, ...]
    profiles: tuple[Curve, ...]
    """By the first fit, each of one budget (IsoFLOP profiles); none where it tells no best size."""
    frontier: Curve | None
    """By the first fit, up to the dearest of the runs and of what is foreseen; None where it is a
    law of two terms that tells no best size."""
    helpful: HelpfulRun | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return every number, ready for JSON."""
        runs = self.fits[0].observations
        return {
            "quintic scale": FORMAT,
            "runs": [asdict(run) for run in runs.runs],
            "fits": [_fit_dict(found) for found in self.fits],
            "predictions": [asdict(found) for found in self.predictions],
            "optima": [asdict(found) for found in self.optima],
            "profiles": [asdict(found) for found in self.profiles],
            "frontier": None if self.frontier is None else asdict(self.frontier),
            "most helpful run": None if self.helpful is None else asdict(self.helpful),
            "notes": list(self.notes),
        }


def scale(
    observations: Observations,
    *,
    law: LawName = "auto",
    count: Count | None = None,
    targets: Sequence[Target] = (),
    budgets: Sequence[float] = (),
    draws: int = 2000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Scaling:
    """Fit a law to runs and foresee with it; `count` is how parameters are counted in what is
    foreseen, the first way that the runs know unless it is given.

    Raises `QuinticError` where the runs cannot carry the law, or tell no best size for `budgets`.
    """
    chosen = observations.counts[0] if count is None else count
    if chosen not in observations.counts:
        raise QuinticError(
            f"--count is {chosen}, and {observations.source} say only {observations.counts[0]}: "
            "leave it out"
        )
    counts = [chosen, *(other for other in observations.counts if other != chosen)]
    form = choose_form(observations, chosen, law)
    fits = [fit(observations, form, one, draws=draws, seed=seed) for one in counts]
    if budgets and form != TWO_TERMS:
        raise QuinticError(
            "the best size for a budget follows from a law in N and D alone, and here D follows N: "
            "train the smaller sizes on a quarter and on 4 times the tokens as well, or leave "
            "--budget and --hours out"
        )
    untold = fits[0].untold
    if budgets and untold:
        raise QuinticError(
            f"{observations.source} tell no best size for a budget: {untold_words(untold)}; train "
            "sizes, or numbers of tokens, further apart, or more of them, or leave --budget and "
            "--hours out"
        )
    predictions = [
        predict(found, target.label, _place(target, found.count), seed)
        for target in targets
        for found in fits
        if found.count in target.parameters
    ]
    optima = [optimum(found, budget) for budget in budgets for found in fits if not found.untold]
    profiled: list[float] = []
    if form == TWO_TERMS and not untold:
        profiled = sorted({*_usual_budgets(observations), *budgets})
    asked: list[Prediction | Optimum] = [*predictions, *optima]
    foreseen = [*budgets, *(found.place["flops"] for found in predictions)]
    dearest = max([float(observations.flops_R.max()), *foreseen])
    return Scaling(
        tuple(fits),
        tuple(predictions),
        tuple(optima),
        tuple(profile(fits[0], flops) for flops in profiled),
        None if form == TWO_TERMS and untold else frontier(fits[0], dearest),
        helpful_run(fits[0], asked[0] if asked else None),
        tuple(notes),
    )


def _usual_budgets(observations: Observations) -> list[float]:
    """Return the budgets around which most runs are, as where sizes were varied at equal FLOPs."""
    left_R, found = observations.flops_R, list[float]()
    while len(left_R) and len(found) < PROFILES:
        near = [int((np.abs(np.log(left_R / c)) < NEAR_BUDGET).sum()) for c in left_R]
        found.append(float(left_R[int(np.argmax(near))]))
        left_R = left_R[np.abs(np.log(left_R / found[-1])) > np.log(APART)]
    return found


def _place(target: Target, count: Count) -> Place:
    place: Place = {"parameters": target.parameters[count], "tokens": target.tokens}
    return place if target.flops is None else {**place, "flops": target.flops}


def _fit_dict(found: Fit) -> dict[str, Any]:
    return {
        "law": formula(found.form),
        "count": COUNTS[found.count],
        "parameters": {name: asdict(value) for name, value in found.parameters().items()},
        "size of the best run grows with FLOPs to the power": (
            asdict(growth(found)) if found.form == TWO_TERMS and not found.untold else None
        ),
        "exponents whose interval holds 0": list(found.untold),
        "flops per token": asdict(found.cost),
        "groups": found.observations.groups,
        "draws": len(found.draws.log_e_K),
        "draws in which a term vanishes": found.degenerate,
        "starts": found.starts,
        "starts that were followed": found.followed,
        "starts that came to the best": found.at_best,
        "residual": {
            "label": [run.label for run in found.observations.runs],
            "log loss less the law's": found.residual_R.tolist(),
        },
    }
