"""Newton-Schulz against the singular value decomposition."""

import pytest
import torch

from quintic.optim.orthogonalize import newton_schulz, orthogonalize_svd

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
    found = newton_schulz(G, steps=30, coefficients=converging)
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
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


def test_bfloat16_stays_close_to_float64() -> None:
    G = torch.randn(64, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    exact, found = newton_schulz(G), newton_schulz(G.bfloat16()).double()
    assert (found - exact).norm() / exact.norm() < 0.05
