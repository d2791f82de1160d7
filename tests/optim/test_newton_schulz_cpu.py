"""Newton-Schulz of large matrices on a CPU: the plain iteration in exact arithmetic, and nearly as
good in float32 and bfloat16, whatever the singular values; in memory for one matrix a thread."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from quintic.optim import newton_schulz_cpu
from quintic.optim.muon import Muon
from quintic.optim.newton_schulz import (
    COEFFICIENTS,
    EPS,
    newton_schulz,
    newton_schulz_flops,
)
from quintic.optim.newton_schulz_cpu import SMALLEST_ROWS, product_dtype, symmetric_product

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


def with_spectrum(name: str, shape: tuple[int, int]) -> Tensor:
    U, S, Vh = torch.linalg.svd(gaussian(*shape), full_matrices=False)
    result: Tensor = (U * SPECTRA[name](S)) @ Vh
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
    G = with_spectrum(spectrum, shape).float()
    exact = plain(G.double())
    error = (newton_schulz(G).double() - exact).norm()
    assert error <= 2 * (plain(G).double() - exact).norm()
    assert error < 1e-3 * exact.norm()


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(300, 700), (300, 256)], ids=str)
def test_the_error_in_bfloat16_is_at_most_twice_the_plain_iterations(
    shape: tuple[int, int],
    spectrum: str,
    products: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(newton_schulz_cpu, "product_dtype", lambda _: products)
    G = with_spectrum(spectrum, shape).bfloat16()
    exact = plain(G.double())
    found = newton_schulz(G)
    assert found.dtype is torch.bfloat16
    assert (found.double() - exact).norm() <= 2 * (plain(G).double() - exact).norm()
    # Of a matrix in float32 the iteration alone is in bfloat16, and the result has its numbers.
    wider = newton_schulz(G.float(), dtype=torch.bfloat16)
    assert wider.dtype is torch.float32
    assert torch.equal(wider, wider.bfloat16().float())
    assert (wider.double() - exact).norm() <= 2 * (plain(G).double() - exact).norm()


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"architecture": "x86_64"}, torch.float32),
        ({"architecture": "x86_64", "avx512_bf16": True, "avx512_fp16": True}, torch.float32),
        (
            {
                "architecture": "x86_64",
                "avx512_bf16": True,
                "avx512_fp16": True,
                "amx_bf16": True,
            },
            torch.bfloat16,
        ),
        ({"architecture": "x86_64", "avx512_bf16": True}, torch.bfloat16),
        ({"architecture": "arm64"}, torch.bfloat16),
    ],
    ids=["no units", "AVX512_BF16 of Intel", "AMX", "AVX512_BF16 of AMD", "ARM"],
)
def test_bfloat16_is_multiplied_in_float32_where_that_is_faster(
    has: dict[str, Any], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    product_dtype.cache_clear()
    assert product_dtype(torch.bfloat16) is expected
    assert product_dtype(torch.float64) is torch.float64
    product_dtype.cache_clear()


class Storages(TorchDispatchMode):
    """Keeps every result, so that each new storage has an address of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.kept += [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result


@pytest.mark.parametrize("ns_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_of_large_matrices_needs_one_room_and_no_copies(
    ns_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newton_schulz_cpu, "product_dtype", lambda _: torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    parameters = [nn.Parameter(gaussian(*shape).float()) for shape in SHAPES]
    muon = Muon(parameters, lr=0.1, weight_decay=0.1, ns_dtype=ns_dtype)
    muon.allocate_state()
    before = set()
    for p in parameters:
        p.grad = torch.ones_like(p)
        for held in (p, p.grad, muon.state[p]["momentum"]):
            before.add(held.untyped_storage().data_ptr())
    with Storages() as storages:
        muon.step()
    torch.set_num_threads(threads)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in storages.kept}
    matrix = 4 * 256 * 256
    large = [size for at, size in sizes.items() if size >= matrix and at not in before]
    # (300, 700) has the largest matrix, with four Gram matrices in float32 and two in bfloat16;
    # (1024, 256) the largest for itself.
    most = {torch.float32: 300 * 700 + 4 * 300**2, torch.bfloat16: 1024 * 256 + 2 * 256**2}
    assert large == [4 * most[ns_dtype]]


@pytest.mark.parametrize("rows", [1, 128, 130, 300])
def test_a_symmetric_product_is_the_whole_product(rows: int) -> None:
    X, plus = gaussian(rows, 50), gaussian(rows, rows)
    plus = plus + plus.T
    out = torch.empty(rows, rows, dtype=torch.float64)
    symmetric_product(X, X.T, out=out)
    torch.testing.assert_close(out, X @ X.T)
    symmetric_product(X, X.T, out=out, plus=plus, beta=0.5, alpha=-2)
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
