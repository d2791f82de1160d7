"""Newton-Schulz's symmetric products by the kernel, against PyTorch's."""

from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from quintic.config import OptimConfig
from quintic.errors import QuinticError
from quintic.model.build import build_model
from quintic.optim.muon import Muon, muon_update
from quintic.optim.newton_schulz import gram_polynomial, newton_schulz, polynomial_for
from quintic.optim.param_groups import assign_parameters, build_optimizers
from quintic.recipes import get_recipe

pytestmark = pytest.mark.device

SHAPES = [(1, 1, 1), (2, 5, 7), (1, 64, 32), (3, 130, 70), (1, 300, 257)]
"""Below a tile, a tile's own size, and rows and columns that no tile divides."""

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def kernel(device: torch.device) -> ModuleType:
    from quintic.kernels import gram

    return gram


def stack(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Matrices of Frobenius norm 1, as Newton-Schulz has them."""
    X = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    X /= X.norm(dim=(-2, -1), keepdim=True)
    return X.to(device)


def assert_as_exact(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Within twice the error of the plain reference, or right to the last bit of float32."""
    assert found.dtype == plain.dtype
    own, allowed = (found.double() - exact).norm(), 2 * (plain.double() - exact).norm()
    assert own <= allowed + 2e-7 * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_product_is_symmetric_and_as_exact_as_pytorchs(
    kernel: ModuleType, device: torch.device, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    X = stack(shape, device)
    found, plain = kernel.gram(X.to(dtype)), X.to(dtype) @ X.to(dtype).mT
    assert_as_exact(found, plain, X @ X.mT)
    assert torch.equal(found, found.mT)

    A, b, c = found, -4.775, 2.0315
    found, plain = kernel.symmetric_polynomial(A, b, c), torch.baddbmm(A, A, A, beta=b, alpha=c)
    assert_as_exact(found, plain, b * A.double() + c * A.double() @ A.double())
    assert torch.equal(found, found.mT)


def test_every_tile_of_a_large_triangle_is_written(
    kernel: ModuleType, device: torch.device
) -> None:
    """Of 45 tiles in 9 rows, by the numbering that needs a square root."""
    X = stack((1, 9 * 64 - 3, 8), device)
    torch.testing.assert_close(kernel.gram(X.float()).double(), X @ X.mT, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 40), (2, 1, 70, 33)])
def test_newton_schulz_with_the_kernel_is_as_exact(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    G = stack(shape, device)
    fast = partial(newton_schulz, polynomial=polynomial_for("triton", device, dtype))
    assert_as_exact(fast(G.to(dtype)), newton_schulz(G.to(dtype)), newton_schulz(G))
    assert torch.equal(fast(torch.zeros_like(G)[..., :3].to(dtype)), torch.zeros_like(G)[..., :3])


def test_torch_compile_takes_the_update_whole(device: torch.device) -> None:
    """Up to what baddbmm rounds otherwise where it is taken apart."""
    G = stack((2, 20, 12), device).float()

    def updated(update: object) -> Tensor:
        assert callable(update)
        result: Tensor = update(
            [*G],
            [*torch.zeros_like(G)],
            momentum=0.95,
            nesterov=True,
            ns_steps=5,
            ns_dtype=torch.float32,
            polynomial=polynomial_for("triton", device, torch.float32),
        )
        return result

    compiled = torch.compile(muon_update, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(updated(compiled), updated(muon_update), rtol=1e-5, atol=1e-6)


def test_the_optimizer_uses_the_kernel_that_the_config_names(
    kernel: ModuleType, device: torch.device
) -> None:
    def polynomial(name: str) -> object:
        config = get_recipe("laptop").override({"model.vocab_size": 64, "optim.muon.kernel": name})
        model = build_model(config.model).to(device)
        specs = assign_parameters(model, config.optim)
        optimizers = build_optimizers(model, specs, config.optim, device=device)
        (muon,) = (o for o in optimizers if isinstance(o, Muon))
        return muon._outside_groups["polynomial"]

    assert polynomial("triton") is kernel.gram_polynomial
    assert polynomial("torch") is polynomial("auto") is gram_polynomial
    assert OptimConfig().muon.kernel == "auto"


def test_float64_is_refused(device: torch.device) -> None:
    with pytest.raises(QuinticError, match=r"adds up in float32 .* use --optim\.muon\.kernel"):
        polynomial_for("triton", device, torch.float64)
    assert polynomial_for("auto", device, torch.float64) is gram_polynomial
