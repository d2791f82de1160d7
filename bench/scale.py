"""How fast and how right the fit of a law is: `python -m bench.scale`.

2,000 draws of 240 runs that follow the law of Hoffmann et al.'s runs with noise, fitted from the
starts of `quintic scale`: all at once by Newton's method as there, and one after the other by
SciPy's BFGS, with the gradient written out, as a straightforward loop does it. Both in one process
on one thread. Then the largest difference of a parameter, in any draw.

`--coverage` instead draws 500 sets of runs from laws that are known, and counts how often each
interval holds the truth. `--seeds` does so for three ways to draw runs that have seeds.

Expected on a CPU, before measuring: a step of all fits at once costs what its exponentials cost,
240 x 2 x 2,000 of them, about 10 ms, and 15 steps do; BFGS needs about 40 steps of about 60 us
for each fit. So about a fiftieth.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.optimize import minimize

from bench.results import print_table, write_result
from quintic.errors import QuinticError
from quintic.scale.fit import (
    EARLY_STEPS,
    FOLLOWED,
    Fit,
    draw_weights,
    fit,
    solve_draws,
    starts,
    variables,
)
from quintic.scale.law import TWO_TERMS, Variable
from quintic.scale.observations import Observation, Observations
from quintic.scale.solver import DELTA, Floats, solve

E, A, B, EXPONENT_N, EXPONENT_D = 1.817, 482.0, 2085.4, 0.348, 0.366
"""The law of Besiroglu et al. (https://arxiv.org/abs/2404.10102)."""
SMALL = (1.8, 30.0, 60.0, 0.35, 0.37)
"""A law of the small runs whose coverage is counted."""


def loss_of(law: tuple[float, ...], n: float, d: float) -> float:
    """Return the loss of a law (E, A, B, a, b)."""
    e, a, b, exponent_n, exponent_d = law
    return float(e + a / n**exponent_n + b / d**exponent_d)


def draw_runs(
    law: tuple[float, ...],
    pairs: list[tuple[float, float]],
    generator: np.random.Generator,
    *,
    noise: float,
    seeds: int = 1,
    tails: bool = False,
    shared: float = 0.0,
) -> Observations:
    """Return runs of these N and D; `noise` is the standard deviation of log L, which with `tails`
    has Student's t distribution of 5 degrees of freedom, and `shared` that of a deviation from the
    law that all seeds of a pair have alike."""

    def one() -> float:
        if tails:
            return float(generator.standard_t(5) * np.sqrt(3 / 5))
        return float(generator.standard_normal())

    runs = []
    for group, (n, d) in enumerate(pairs):
        loss = loss_of(law, n, d) * float(np.exp(shared * one() if shared else 0.0))
        runs += [
            Observation(
                f"run {group}", {"given": n}, d, 6 * n * d,
                loss * float(np.exp(noise * one())), group, seed,
            )
            for seed in range(seeds)
        ]  # fmt: skip
    return Observations(runs, "the runs")


def like_chinchilla(generator: np.random.Generator) -> list[tuple[float, float]]:
    """Return 240 pairs of N and D: nine budgets from 6e18 to 3e21 FLOPs, N over a factor of 20."""
    pairs = []
    for budget in np.repeat(np.geomspace(6e18, 3e21, 9), 27)[:240]:
        n = 0.09 * budget**0.5 * float(np.exp(generator.uniform(-1.5, 1.5)))
        pairs.append((n, float(budget / (6 * n))))
    return pairs


def bfgs(
    start_P: Floats, weights_R: Floats, x_MR: Floats, log_loss_R: Floats, gtol: float = 1e-12
) -> Floats:
    """Return where SciPy's BFGS ends, and the sum of losses there.

    That sum is about 1e-3: SciPy's own tolerance of a gradient, 1e-5, ends far from the minimum.
    """
    x, y = x_MR

    def objective(parameters: Floats) -> tuple[float, Floats]:
        c, d, a, b, e = parameters
        of_n, of_d, of_e = np.exp(c - a * x), np.exp(d - b * y), np.exp(e)
        total = of_n + of_d + of_e
        r = log_loss_R - np.log(total)
        bounded = np.clip(r, -DELTA, DELTA)
        value = float(weights_R @ (bounded * (r - bounded / 2)))
        pull = weights_R * bounded / total
        gradient = [-pull @ of_n, -pull @ of_d, pull @ (of_n * x), pull @ (of_d * y)]
        return value, np.array([*gradient, -pull.sum() * of_e])

    found = minimize(objective, start_P, jac=True, method="BFGS", options={"gtol": gtol})
    return np.append(found.x, found.fun)


def speed(draws: int) -> None:
    """Time both ways in turn, and print their ratio and their largest difference."""
    generator = np.random.default_rng(0)
    pairs = like_chinchilla(generator)
    runs = draw_runs((E, A, B, EXPONENT_N, EXPONENT_D), pairs, generator, noise=0.0075, tails=True)
    x_MR, log_loss_R = variables(runs, TWO_TERMS, "given"), np.log(runs.loss_R)
    x_MR = x_MR - x_MR.mean(1)[:, None]
    starts_KP = starts(x_MR, log_loss_R)
    weights_KR = draw_weights(runs, draws, seed=0)
    ones_R = np.ones(len(log_loss_R))

    def ours() -> tuple[Floats, Floats, Floats]:
        early = solve(starts_KP, ones_R[None], x_MR, log_loss_R, EARLY_STEPS)
        first = np.argsort(early.objective_K)[:FOLLOWED]
        ends = solve(early.parameters_KP[first], ones_R[None], x_MR, log_loss_R)
        best_P = ends.parameters_KP[ends.objective_K.argmin()]
        drawn = solve_draws(best_P[None], weights_KR, x_MR, log_loss_R)
        return best_P, drawn.parameters_KP, drawn.objective_K

    def loop() -> tuple[Floats, Floats, Floats]:
        ends = np.stack([bfgs(start, ones_R, x_MR, log_loss_R) for start in starts_KP])
        best_P = ends[ends[:, -1].argmin(), :-1]
        drawn = np.stack([bfgs(best_P, weights, x_MR, log_loss_R) for weights in weights_KR])
        return best_P, drawn[:, :-1], drawn[:, -1]

    ours()  # warm
    ours_s, (best_P, drawn_KP, sums_K) = timed(ours)
    loop_s, (loop_best_P, loop_drawn_KP, loop_sums_K) = timed(loop)
    again_s, _ = timed(ours)
    ours_s = (ours_s + again_s) / 2
    middle_M = variables(runs, TWO_TERMS, "given").mean(1)
    away_K = np.abs(as_law(drawn_KP, middle_M) - as_law(loop_drawn_KP, middle_M)).max(1)
    away = np.abs(as_law(best_P[None], middle_M) - as_law(loop_best_P[None], middle_M)).max()
    figures = {
        "runs": len(runs),
        "draws": draws,
        "starts": len(starts_KP),
        "seconds of quintic": ours_s,
        "seconds of the loop": loop_s,
        "ratio": loop_s / ours_s,
        "largest difference, all runs": float(away),
        "largest difference, draws": float(away_K.max()),
        "draws that differ by more than 1e-6": int((away_K > 1e-6).sum()),
        "draws where the loop's sum is lower by more than 1e-12 of it": int(
            (loop_sums_K < sums_K * (1 - 1e-12)).sum()
        ),
        "draws where ours is": int((sums_K < loop_sums_K * (1 - 1e-12)).sum()),
    }
    print_table(["", ""], [[name, f"{value:.6g}"] for name, value in figures.items()])
    write_result("scale-cpu-1thread", figures, torch.device("cpu"), module="bench.scale")


def as_law(parameters_KP: Floats, middle_M: Floats) -> Floats:
    """Return log A, log B, a, b and log E of fits in which x was centred."""
    law_KP = parameters_KP.copy()
    law_KP[:, :2] += parameters_KP[:, 2:4] * middle_M
    return law_KP


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a function takes, and what it returns."""
    began = time.perf_counter()
    found = function()
    return time.perf_counter() - began, found


DESIGNS: dict[str, tuple[list[tuple[float, float]] | None, float, int]] = {
    "the prophecy's 14, 2 seeds each": (
        [
            (48 * width**2, tokens)
            for width in (32, 64, 96, 128)
            for tokens in (2**18, 2**19, 2**20, 2**21)[: 4 if width < 96 else 3]
        ], 0.003, 2,
    ),
    "5 sizes on 4 numbers of tokens": (
        [(n * 1e6, r * n * 1e6) for n in (1, 2, 4, 8, 16) for r in (5, 10, 20, 40)], 0.003, 1,
    ),
    "5 sizes on 4, 3 seeds each": (
        [(n * 1e6, r * n * 1e6) for n in (1, 2, 4, 8, 16) for r in (5, 10, 20, 40)], 0.003, 3,
    ),
    "240 like Chinchilla's": (None, 0.0075, 1),
}  # fmt: skip
"""Pairs of N and D, standard deviation of log L, and seeds of each."""


PARAMETERS_AND_LOSS = ("E", "A", "B", "a", "b", "loss")


def coverage(laws: int, draws: int) -> None:
    """Count how often the intervals hold the truth, for every design."""
    figures = {}
    for name, (pairs, noise, seeds) in DESIGNS.items():
        law = SMALL if pairs else (E, A, B, EXPONENT_N, EXPONENT_D)
        held, refused = [], 0
        for number in range(laws):
            generator = np.random.default_rng(number)
            places = pairs or like_chinchilla(np.random.default_rng(0))
            runs = draw_runs(law, places, generator, noise=noise, seeds=seeds, tails=pairs is None)
            try:
                found = fit(runs, TWO_TERMS, "given", draws=draws, seed=number)
            except QuinticError:
                refused += 1
                continue
            at, loss = beyond(law, places)
            one = loss * float(np.exp(noise * generator.standard_normal()))
            alone = found.predicted_run(at, seed=number)
            held.append([*holds(found, law, at, loss), alone.low <= one <= alone.high])
        shares = np.mean(held, axis=0).tolist()
        figures[name] = {"held": shares, "refused": refused, "laws": laws, "draws": draws}
        row = [name, *(f"{share:.3f}" for share in shares), refused]
        print_table(["", *PARAMETERS_AND_LOSS, "one run", "refused"], [row])
        sys.stdout.flush()
    write_result("scale-coverage", figures, torch.device("cpu"), module="bench.scale --coverage")


def beyond(
    law: tuple[float, ...], pairs: list[tuple[float, float]]
) -> tuple[dict[Variable, float], float]:
    """Return the place at 4 times the largest N on 4 times the most tokens, and its loss."""
    n, d = (4 * max(pair[i] for pair in pairs) for i in (0, 1))
    return {"parameters": n, "tokens": d}, loss_of(law, n, d)


def holds(found: Fit, law: tuple[float, ...], at: dict[Variable, float], loss: float) -> list[bool]:
    """Return which intervals hold the truth: of the parameters of a law, and of the loss."""
    intervals = [*found.parameters().values(), found.predicted(at)]
    return [i.low <= true <= i.high for i, true in zip(intervals, [*law, loss], strict=True)]


def draw_seeds_too(observations: Observations, draws: int, seed: int) -> Floats:
    """Return weights of the groups, as `quintic scale` draws them, with others within each."""
    weights_KR = draw_weights(observations, draws, seed)
    within_KR = np.random.default_rng([seed, 1]).exponential(size=weights_KR.shape)
    for group in range(observations.groups):
        own_R = observations.group_R == group
        within_KR[:, own_R] *= own_R.sum() / within_KR[:, own_R].sum(1, keepdims=True)
    return weights_KR * within_KR


def coverage_by_draw(laws: int, draws: int) -> None:
    """Count the same where pairs have seeds, for three ways to draw: groups, as `quintic scale`
    does; groups and seeds within them; and every run for itself."""
    figures: dict[str, Any] = {"laws": laws, "draws": draws}
    for name, (pairs, noise, seeds) in DESIGNS.items():
        for shared in (0.0, noise) if pairs and seeds > 1 else ():
            assert pairs is not None
            at, loss = beyond(SMALL, pairs)
            held: dict[str, list[list[bool]]] = {}
            for number in range(laws):
                generator = np.random.default_rng(number)
                runs = draw_runs(SMALL, pairs, generator, noise=noise, seeds=seeds, shared=shared)
                apart = [replace(run, group=r) for r, run in enumerate(runs.runs)]
                for way, drawn, weigh in (
                    ("groups", runs, draw_weights),
                    ("groups and seeds", runs, draw_seeds_too),
                    ("runs", Observations(apart, runs.source), draw_weights),
                ):
                    with (
                        mock.patch("quintic.scale.fit.draw_weights", weigh),
                        contextlib.suppress(QuinticError),
                    ):
                        found = fit(drawn, TWO_TERMS, "given", draws=draws, seed=number)
                        held.setdefault(way, []).append(holds(found, SMALL, at, loss))
            kind = f"{name}, {'with' if shared else 'without'} a deviation that seeds share"
            shares = {way: np.mean(each, axis=0).tolist() for way, each in held.items()}
            refused = {way: laws - len(each) for way, each in held.items()}
            figures[kind] = {"held": shares, "refused": refused}
            rows = [
                [way, *(f"{share:.3f}" for share in each), refused[way]]
                for way, each in shares.items()
            ]
            print_table([kind, *PARAMETERS_AND_LOSS, "refused"], rows)
            sys.stdout.flush()
    write_result("scale-seeds", figures, torch.device("cpu"), module="bench.scale --seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--coverage", action="store_true")
    part.add_argument("--seeds", action="store_true")
    parser.add_argument("--laws", type=int, default=500)
    parser.add_argument("--draws", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.coverage:
        coverage(options.laws, options.draws or 300)
    elif options.seeds:
        coverage_by_draw(options.laws, options.draws or 300)
    else:
        speed(options.draws or 2000)


if __name__ == "__main__":
    main()
