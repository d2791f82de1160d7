"""The runs of the Chinchilla paper, against the published re-analysis of them."""

import os
from pathlib import Path

import numpy as np
import pytest

from quintic.scale.csv_file import read_csv
from quintic.scale.fit import Fit, fit, variables
from quintic.scale.law import TWO_TERMS
from tests.model.test_gpt import SHARED

RUNS = Path(os.environ.get("QUINTIC_BENCH_DATA") or SHARED / "data") / "chinchilla_figure4.csv"

PUBLISHED = {
    "E": (1.817, 0.026),
    "A": (482.0, 124.5),
    "B": (2085.4, 1293.3),
    "a": (0.348, 0.015),
    "b": (0.366, 0.021),
}
"""Estimates and standard errors of Besiroglu et al. (https://arxiv.org/abs/2404.10102), from 4,000
draws. Their optimizer, BFGS, ends at a sum of losses 5e-5 above the least one, which is why the
estimates are not the same to the last digit (docs/scaling.md)."""
ORIGINAL = {"E": 1.69, "b": 0.28}
"""Of Hoffmann et al. (https://arxiv.org/abs/2203.15556). Their a, 0.34, is that of the re-analysis
within its standard error."""


@pytest.fixture(scope="module")
def found() -> Fit:
    if not RUNS.is_file():
        pytest.skip(f"no {RUNS}; set QUINTIC_BENCH_DATA to the folder of the benchmark corpus")
    return fit(read_csv(RUNS).without_highest(5), TWO_TERMS, "given", draws=4000)


def test_parameters_and_standard_errors_are_the_published_ones(found: Fit) -> None:
    assert len(found.observations) == 240
    assert found.degenerate == 0
    for name, interval in found.parameters().items():
        estimate, error = PUBLISHED[name]
        assert abs(interval.estimate - estimate) < 0.1 * error, name
        # A standard error of 4,000 draws is itself known to about 1 / sqrt(8000); B's draws have a
        # long tail, from which its own varies more.
        assert interval.error == pytest.approx(error, rel=0.15 if name == "B" else 0.06), name


def test_the_original_paper_s_law_is_outside_the_intervals(found: Fit) -> None:
    intervals = found.parameters()
    for name, value in ORIGINAL.items():
        assert not intervals[name].low <= value <= intervals[name].high, name
    assert intervals["a"].low < 0.34 < intervals["a"].high


def test_the_published_estimates_are_where_bfgs_ends_by_its_own_tolerance(found: Fit) -> None:
    """Fails where the difference from the published estimates is a mistake of ours."""
    pytest.importorskip("scipy")
    from bench.scale import bfgs

    runs = found.observations
    x_MR, log_loss_R = variables(runs, TWO_TERMS, "given"), np.log(runs.loss_R)
    published = np.array([np.log(482.01), np.log(2085.43), 0.3478, 0.3658, np.log(1.8172)])
    ones = np.ones(len(runs))
    stopped = bfgs(published, ones, x_MR, log_loss_R, gtol=1e-5)
    assert stopped[:5] == pytest.approx(published, abs=1e-3)
    assert stopped[5] == pytest.approx(0.00101832, rel=1e-5)
    further = bfgs(published, ones, x_MR, log_loss_R, gtol=1e-9)
    assert further[5] == pytest.approx(0.00101827, rel=1e-5)
    log_a, log_b = found.law.log_factor_KM[0]
    assert further[:2] == pytest.approx([log_a, log_b], abs=1e-4)
