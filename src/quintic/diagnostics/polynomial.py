"""Newton-Schulz as what it is to singular values: a polynomial of each, and the band it ends in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from quintic.optim.newton_schulz import COEFFICIENTS, Coefficients

BAND_FROM, BAND_POINTS = 1e-6, 200_000
"""The grid, even in the logarithm, on which a band is looked for."""


def sequence_of(name: str, steps: int) -> tuple[Coefficients, ...]:
    """Return the coefficients of each of so many iterations, for `optim.muon.ns_coefficients`."""
    coefficients = COEFFICIENTS[name]
    return tuple(coefficients[min(step, len(coefficients) - 1)] for step in range(steps))


def apply_polynomial(values: Tensor, sequence: Sequence[Coefficients]) -> Tensor:
    """Return what exact iterations make of singular values in [0, 1]."""
    for a, b, c in sequence:
        squares = values.square()
        values = values * (a + b * squares + c * squares.square())
    return values


@cache
def polynomial_band(sequence: tuple[Coefficients, ...]) -> tuple[float, float]:
    """Return the lowest and the highest value that iterations make of any singular value which
    they have lifted as far as the polynomial's first maximum; what is smaller is still rising.

    For the original's five iterations 0.682 and 1.202.
    """
    grid = torch.logspace(
        torch.tensor(BAND_FROM).log10().item(), 0, BAND_POINTS, dtype=torch.float64
    )
    made = apply_polynomial(grid, sequence)
    falls = (made.diff() < 0).nonzero()
    first = int(falls[0]) if len(falls) else len(made) - 1
    return made[first:].min().item(), made.max().item()
