"""What a law foresees beyond its runs, and the run that would help most."""

import numpy as np
import pytest

from quintic.scale.fit import Fit, fit
from quintic.scale.forecast import growth, helpful_run, optimum, predict
from quintic.scale.law import TWO_TERMS
from quintic.scale.observations import Observation, Observations
from tests.scale.laws import EXPONENT_D, EXPONENT_N, grid, loss_of, runs_of

NOISE = 0.003


@pytest.fixture(scope="module")
def found() -> Fit:
    return fit(runs_of(grid(), noise=NOISE, draw=4), TWO_TERMS, "given", draws=400)


def test_one_run_is_less_certain_than_the_mean_by_the_noise(found: Fit) -> None:
    among = predict(found, "one", {"parameters": 4e6, "tokens": 8e7})
    assert among.beyond == ()
    law, run = (np.log(i.high / i.low) for i in (among.law, among.run))
    assert law < run
    # Both widths are of 95%, and variances add.
    assert np.sqrt(run**2 - law**2) == pytest.approx(2 * 1.96 * NOISE, rel=0.4)


def test_what_is_beyond_the_runs_is_said_by_how_much(found: Fit) -> None:
    far = predict(found, "far", {"parameters": 64e6, "tokens": 1e6, "flops": 6 * 64e12})
    assert far.beyond == (
        "N is 4 times the largest",
        "D is 0.2 times the smallest",
        "D / N is 0.00313 times the smallest",
    )


def test_the_best_size_grows_as_the_exponents_say(found: Fit) -> None:
    small, large = (optimum(found, flops) for flops in (1e15, 1e17))
    a, b = found.law.exponent_KM[0]
    grown = np.log(large.parameters.estimate / small.parameters.estimate) / np.log(100)
    assert grown == pytest.approx(b / (a + b))
    assert growth(found).estimate == pytest.approx(b / (a + b))
    true = EXPONENT_D / (EXPONENT_N + EXPONENT_D)
    assert growth(found).low < true < growth(found).high
    assert large.parameters.low < large.parameters.estimate < large.parameters.high


def test_the_run_that_would_help_most_helps(found: Fit) -> None:
    """Fails where the run that is named narrows the interval less than one at the other end."""
    target = predict(found, "far", {"parameters": 64e6, "tokens": 1.28e9})
    helpful = helpful_run(found, target)
    assert helpful is not None
    assert helpful.of == "the loss of far"
    assert 0.3 < helpful.width < 0.99
    assert helpful.place["flops"] <= 1.001 * found.observations.flops_R.max()

    def width_with(n: float, d: float) -> float:
        one = Observation("more", {"given": n}, d, 6 * n * d, loss_of(n, d), 99)
        more = Observations([*found.observations.runs, one, one, one], "more runs")
        again = fit(more, TWO_TERMS, "given", draws=400).predicted(target.place)
        return again.high - again.low

    named = width_with(helpful.place["parameters"], helpful.place["tokens"])
    assert named < width_with(4e6, 4e7)
