"""Newton-Schulz of large matrices on a CPU: the plain iteration in exact arithmetic, and nearly as
good in float32, whatever the singular values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from quintic.optim.newton_schulz import (
    COEFFICIENTS,
    EPS,
    newton_schulz,
    newton_schulz_flops,
)
from quintic.optim.newton_schulz_cpu import SMALLEST_ROWS, symmetric_product

SHAPES = [(256, 256), (300, 400), (300, 700), (1024, 256)]
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda S: S,
    "falling to 1e-2": lambda S: torch.logspace(0, -2, len(S)).double(),
    "falling to 1e-6": lambda S: torch.logspace(0, -6, len(S)).double(),
    "ten large": lambda S: torch.where(torch.arange(len(S)) < 10, 1.0, 1e-5).double(),
    "rank one": lambda S: torch.where(torch.arange(len(S)) < 1, 1.0, 0.0).double(),
}


def plain(G_rc: Tensor, name: str = "quintic", steps: int = 5) -> Tensor:
    """The iteration as it is defined."""
    coefficients = COEFFICIENTS[name]
    tall = G_rc.shape[0] > G_rc.shape[1]
    X_RC = G_rc.mT if tall else G_rc
    X_RC = X_RC / (X_RC.norm() + EPS)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        A_RR = X_RC @ X_RC.mT
        X_RC = a * X_RC + (b * A_RR + c * A_RR @ A_RR) @ X_RC
    result: Tensor = X_RC.mT if tall else X_RC
    return result


def gaussian(*shape: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "steps"), [("quintic", 5), ("polar_express", 8), ("quintic", 1)])
def test_it_is_the_plain_iteration(shape: tuple[int, int], name: str, steps: int) -> None:
    stack = gaussian(2, *shape)
    found = newton_schulz(stack, steps=steps, coefficients=COEFFICIENTS[name])
    for G, update in zip(stack, found, strict=True):
        torch.testing.assert_close(update, plain(G, name, steps), rtol=0, atol=1e-13)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_in_float32_is_at_most_twice_the_plain_iterations(
    shape: tuple[int, int], spectrum: str
) -> None:
    U, S, Vh = torch.linalg.svd(gaussian(*shape), full_matrices=False)
    G = ((U * SPECTRA[spectrum](S)) @ Vh).float()
    exact = plain(G.double())
    error = (newton_schulz(G).double() - exact).norm()
    assert error <= 2 * (plain(G).double() - exact).norm()
    assert error < 1e-3 * exact.norm()


@pytest.mark.parametrize("rows", [1, 128, 130, 300])
def test_a_symmetric_product_is_the_whole_product(rows: int) -> None:
    X, plus = gaussian(rows, 50), gaussian(rows, rows)
    plus = plus + plus.T
    out = torch.empty(rows, rows, dtype=torch.float64)
    symmetric_product(X, X.T, out=out, dtype=out.dtype)
    torch.testing.assert_close(out, X @ X.T)
    symmetric_product(X, X.T, out=out, dtype=out.dtype, plus=plus, beta=0.5, alpha=-2)
    torch.testing.assert_close(out, 0.5 * plus - 2 * X @ X.T)


@pytest.mark.parametrize(("shape", "share"), [((768, 768), 0.75), ((768, 3072), 0.5)])
def test_it_takes_the_share_of_the_operations_that_it_says(
    shape: tuple[int, int], share: float
) -> None:
    assert shape[0] >= SMALLEST_ROWS
    with FlopCounterMode(display=False) as counter:
        newton_schulz(torch.zeros(shape))
    assert counter.get_total_flops() < share * newton_schulz_flops(*shape)


def test_zero_stays_zero_and_the_input_as_it_is() -> None:
    G = gaussian(256, 512).float()
    before = G.clone()
    newton_schulz(G)
    assert torch.equal(G, before)
    assert not newton_schulz(torch.zeros(256, 1024)).any()
