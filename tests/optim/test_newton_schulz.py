"""Newton-Schulz against the SVD, Polar Express against its construction."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from quintic.optim.newton_schulz import (
    _POLAR_EXPRESS_TABLE,
    POLAR_EXPRESS,
    QUINTIC,
    Coefficients,
    newton_schulz,
    newton_schulz_flops,
    orthogonalize_svd,
)

SHAPES = {"square": (48, 48), "tall": (96, 32), "wide": (32, 96), "row": (1, 20), "column": (20, 1)}


def matrix(shape: tuple[int, int], singular_values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A float64 matrix with the given singular values and random singular vectors."""
    random = torch.Generator().manual_seed(seed)
    rank = min(shape)
    U = torch.linalg.qr(torch.randn(shape[0], rank, generator=random, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(shape[1], rank, generator=random, dtype=torch.float64))[0]
    G: torch.Tensor = U * singular_values @ V.T
    return G


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_random_matrices_keep_their_singular_vectors(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(1)
    G = torch.randn(shape, generator=random, dtype=torch.float64)
    exact = orthogonalize_svd(G)
    found = newton_schulz(G.to(dtype)).double()
    # U^T found V is the polynomial applied to the singular values: diagonal, near one.
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    inner = U.mT @ found @ Vh.mT
    values = inner.diagonal()
    assert (inner - torch.diag(values)).abs().max() < (1e-12 if dtype is torch.float64 else 1e-4)
    # The smallest values of a random square matrix are still on their way up after five steps.
    assert values.max() < 1.21
    assert values.median() > 0.65
    assert values.min() > (0.65 if shape[0] != shape[1] else 0.0)
    cosine = (exact * found).sum() / exact.norm() / found.norm()
    assert cosine > 0.95


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ill_conditioned_singular_values_rise_as_the_polynomial_says(dtype: torch.dtype) -> None:
    singular = torch.logspace(0, -6, 40, dtype=torch.float64)  # condition 1e6
    G = matrix((40, 40), singular)
    expected = singular / singular.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    found = (U.mT @ newton_schulz(G.to(dtype)).double() @ Vh.mT).diagonal()
    torch.testing.assert_close(
        found, expected, rtol=1e-6, atol=1e-6 if dtype is torch.float64 else 5e-4
    )
    # Five steps multiply a small value by about 3.4445^5 = 485.
    assert found.max() < 1.21
    assert (found[singular / singular.norm() > 5e-3] > 0.6).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_enough_steps_reach_the_svd_with_converging_coefficients(shape: tuple[int, int]) -> None:
    G = matrix(shape, torch.linspace(1, 0.05, min(shape), dtype=torch.float64))
    converging = (15 / 8, -10 / 8, 3 / 8)
    found = newton_schulz(G, steps=30, coefficients=[converging])
    torch.testing.assert_close(found, orthogonalize_svd(G), rtol=0, atol=1e-9)


def test_rank_deficient_matrices_stay_in_their_span() -> None:
    singular = torch.cat([torch.ones(5), torch.zeros(27)]).double()
    G = matrix((32, 64), singular)
    found = newton_schulz(G)
    values = torch.linalg.svdvals(found)
    assert ((values[:5] > 0.65) & (values[:5] < 1.21)).all()
    assert values[5:].max() < 1e-10
    exact = orthogonalize_svd(G)
    assert torch.linalg.matrix_rank(exact) == 5
    torch.testing.assert_close(exact @ exact.T @ found, found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_stays_zero(dtype: torch.dtype) -> None:
    zero = torch.zeros(3, 8, 16, dtype=dtype)
    assert torch.equal(newton_schulz(zero), zero)
    assert torch.equal(orthogonalize_svd(zero.float()), zero.float())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_batch_equals_the_loop(shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(2)
    G = torch.randn(2, 3, *shape, generator=random, dtype=torch.float64)
    together = newton_schulz(G)
    alone = torch.stack([newton_schulz(g) for g in G.flatten(0, 1)]).view_as(G)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_the_result_does_not_depend_on_the_scale_of_the_input() -> None:
    G = torch.randn(16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(newton_schulz(1e4 * G), newton_schulz(G), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_floating_point_operations_are_those_that_pytorch_counts(shape: tuple[int, int]) -> None:
    with FlopCounterMode(display=False) as counter:
        newton_schulz(torch.randn(3, *shape), steps=4)
    assert counter.get_total_flops() == 3 * newton_schulz_flops(*shape, steps=4)
    assert newton_schulz_flops(768, 768, steps=5) == 30 * 768**3
    assert newton_schulz_flops(3072, 768, steps=5) == 90 * 768**3


def test_bfloat16_stays_close_to_float64() -> None:
    G = torch.randn(64, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    exact, found = newton_schulz(G), newton_schulz(G.bfloat16()).double()
    assert (found - exact).norm() / exact.norm() < 0.05


# Polar Express ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-9, 1.0, 250.0, 1e5])
@pytest.mark.parametrize("shape", [(48, 64), (300, 260), (256, 520)])  # large ones one at a time
def test_float16_stays_close_where_it_has_no_number_for_entries_or_their_norm(
    shape: tuple[int, int], scale: float
) -> None:
    G = scale * torch.randn(shape, generator=torch.Generator().manual_seed(5))
    exact, found = newton_schulz(G.double()), newton_schulz(G, dtype=torch.float16).double()
    assert (found - exact).norm() / exact.norm() < 0.005


def apply(coefficients: Coefficients, x: np.ndarray) -> np.ndarray:
    a, b, c = coefficients
    return np.asarray(a * x + b * x**3 + c * x**5)


def nearest_to_one(low: float, high: float) -> Coefficients:
    """The odd quintic whose largest distance from 1 on [low, high] is smallest.

    By the exchange algorithm of Remez: at four points the error must alternate between +e and -e;
    solve for that, move the two inner points to the extrema, and repeat.
    """
    inner = np.linspace(low, high, 4)[1:3]
    for _ in range(100):
        x = np.array([low, *inner, high])
        system = np.stack([x, x**3, x**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        moved = np.sort(np.sqrt(np.roots([5 * c, 3 * b, a]).real))
        if np.abs(moved - inner).max() < 1e-14:
            break
        inner = moved
    return float(a), float(b), float(c)


def test_the_published_coefficients_are_the_minimax_polynomials_of_the_paper() -> None:
    """Its appendix: from [0.001, 1], each taken on at least [0.024 u, u] and centred on [l, u]."""
    low, high = 1e-3, 1.0
    for published in _POLAR_EXPRESS_TABLE[:7]:
        own = nearest_to_one(max(low, 0.02407327424182761 * high), high)
        ends = apply(own, np.array([low, high]))
        own = tuple(k * 2 / ends.sum() for k in own)
        assert own == pytest.approx(published, rel=1e-5)
        low = float(apply(published, np.array(low)))
        high = 2 - low
    assert _POLAR_EXPRESS_TABLE[7] == (15 / 8, -10 / 8, 3 / 8)
    assert low > 1 - 1e-6


def test_the_safety_factor_is_the_published_one() -> None:
    # Algorithm 1 divides the matrix by 1.01 times its norm and all but the last polynomial's
    # argument by 1.01.
    x = np.linspace(0.01, 1, 50)
    found, expected = x, x / 1.01
    for used, published in zip(POLAR_EXPRESS, _POLAR_EXPRESS_TABLE, strict=True):
        last = published is _POLAR_EXPRESS_TABLE[-1]
        found = apply(used, found)
        expected = apply(published, expected if last else expected / 1.01)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 5, 8, 10])
def test_polar_express_applies_its_polynomials_in_turn_and_repeats_the_last(steps: int) -> None:
    singular = torch.logspace(0, -3, 30, dtype=torch.float64)
    G = matrix((30, 50), singular)
    expected = (singular / singular.norm()).numpy()
    for step in range(steps):
        expected = apply(POLAR_EXPRESS[min(step, 7)], expected)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    found = (U.mT @ newton_schulz(G, steps=steps, coefficients=POLAR_EXPRESS) @ Vh.mT).diagonal()
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_polar_express_reaches_the_svd_where_the_fixed_quintic_does_not(
    shape: tuple[int, int],
) -> None:
    G = matrix(shape, torch.logspace(0, -2, min(shape), dtype=torch.float64))
    exact = orthogonalize_svd(G)
    error = {
        steps: torch.linalg.matrix_norm(
            newton_schulz(G, steps=steps, coefficients=POLAR_EXPRESS) - exact, 2
        )
        for steps in (5, 8, 12)
    }
    assert error[5] < 0.15
    assert error[8] < 2e-3
    assert error[12] < 1e-12
    if min(shape) > 1:
        assert torch.linalg.matrix_norm(newton_schulz(G, coefficients=[QUINTIC]) - exact, 2) > 0.25


def test_polar_express_in_bfloat16_stays_close_to_the_svd() -> None:
    G = torch.randn(64, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = newton_schulz(G.bfloat16(), coefficients=POLAR_EXPRESS).double()
    exact = orthogonalize_svd(G)
    assert (found - exact).norm() / exact.norm() < 0.1


def test_products_that_are_given_are_used_for_large_matrices_too() -> None:
    def refused(X_nRC: torch.Tensor, b: float, c: float) -> torch.Tensor:
        raise KeyError("asked")

    with pytest.raises(KeyError, match="asked"):
        newton_schulz(torch.ones(1, 256, 300), polynomial=refused)
