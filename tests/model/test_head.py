"""The head in float8: the scales, the products, the loss and its gradients, and where it runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quintic.cli.main import main
from quintic.config import Config
from quintic.errors import QuinticError
from quintic.kernels.runnable import require_float8
from quintic.metrics_file import METRICS, read_records
from quintic.model.head import (
    E4M3,
    E5M2,
    GRADIENT_SCALE,
    Float8Products,
    _tensor_core_product,
    power_of_two_scale,
    scaled_product,
)
from quintic.model.loss import (
    CHUNK_ELEMENTS,
    CrossEntropy,
    chunked_cross_entropy,
    chunked_float8_cross_entropy,
    loss_and_gradients,
    plain_cross_entropy,
)
from quintic.model.multi_token import mtp_targets
from tests.conftest import refusal

N, D, V = 64, 32, 512


def inputs(*, zero_head: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Normed activations, a head as it is initialised or of zeros, and targets."""
    random = torch.Generator().manual_seed(0)
    x_ND = torch.randn(N, D, generator=random)
    weight_VD = (torch.rand(V, D, generator=random) * 2 - 1) / D**0.5
    targets_N = torch.randint(V, (N,), generator=random)
    return x_ND, weight_VD * (0 if zero_head else 1), targets_N


def in_float8(gradient: Tensor) -> Tensor:
    """A gradient of the mean loss as the loss writes it."""
    return (gradient * N / GRADIENT_SCALE).to(E5M2)


@pytest.mark.parametrize("largest", [1e-6, 0.3, 447.9, 448.0, 448.1, 1e5])
def test_the_scale_is_the_smallest_power_of_two_that_lets_all_values_fit(largest: float) -> None:
    values = torch.tensor([0.0, -largest, largest / 3])
    scale = power_of_two_scale(values)
    assert torch.log2(scale) == torch.log2(scale).round()
    assert largest / scale <= 448 < largest / (scale / 2)
    assert (values / scale).to(E4M3).float().isfinite().all()


def test_what_float8_can_hold_is_multiplied_exactly() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-8, 9, (n, D), generator=random) / 4 for n in (N, V))
    gradient = torch.randint(-4, 5, (N, V), generator=random) / 4 / N
    products = Float8Products(x, weight)
    assert torch.equal(products.logits(x), x @ weight.T)
    torch.testing.assert_close(products.grad_x(in_float8(gradient)), gradient @ weight)
    torch.testing.assert_close(products.grad_weight(in_float8(gradient), x), gradient.T @ x)


def test_gradients_down_to_half_a_billionth_survive() -> None:
    """Of a token's, before it is divided by the number of tokens."""
    smallest = 2.0**-16 * GRADIENT_SCALE
    assert smallest == pytest.approx(4.66e-10, rel=1e-3)
    products = Float8Products(torch.ones(N, D), torch.ones(V, D))
    gradient = torch.zeros(N, V)
    gradient[0, 0], gradient[1, 0], gradient[2, 0] = smallest / N, 1 / N, -1 / N
    assert products.grad_x(in_float8(gradient))[:3, 0].tolist() == [smallest / N, 1 / N, -1 / N]


def test_pytorchs_product_of_float8_is_called_as_it_asks() -> None:
    """On a CPU that PyTorch knows float8 products on, with the arguments that CUDA gets."""
    x, weight, _ = inputs()
    scales = (torch.tensor(0.5), torch.tensor(2.0**-12))
    for a_dtype, dtype in ((E4M3, torch.bfloat16), (E5M2, torch.float32)):
        a, b = x.to(a_dtype), (weight / scales[1]).to(E4M3)
        try:
            found = _tensor_core_product(a, b, *scales, dtype, fast=False)
        except (NotImplementedError, RuntimeError) as error:
            pytest.skip(f"PyTorch {torch.__version__} has none on this CPU: {error}")
        torch.testing.assert_close(found, scaled_product(a, b, *scales, dtype))


@pytest.mark.device
def test_a_gpu_multiplies_as_the_cpu_says() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("there is no GPU with float8 units")
    x, weight, _ = inputs()
    random = torch.Generator().manual_seed(1)
    gradient = in_float8(torch.randn(N, V, generator=random).clamp(-1, 1) / N)
    here, there = Float8Products(x, weight), Float8Products(x.cuda(), weight.cuda())
    for a, b in (
        (there.logits(x.cuda()), here.logits(x)),
        (there.grad_x(gradient.cuda()), here.grad_x(gradient)),
        (there.grad_weight(gradient.cuda(), x.cuda()), here.grad_weight(gradient, x)),
    ):
        # Tensor cores keep about 14 bits while they add up.
        assert (a.cpu() - b).norm() < 2e-3 * b.norm()


def value_and_gradients(loss: Any, *, zero_head: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, targets = inputs(zero_head=zero_head)
    x.requires_grad_()
    weight.requires_grad_()
    value = loss(x, weight, targets)
    value.backward()
    assert x.grad is not None
    assert weight.grad is not None
    return value.detach(), x.grad, weight.grad


def test_the_loss_and_its_gradients_are_off_by_float8s_rounding_and_no_more() -> None:
    exact = value_and_gradients(plain_cross_entropy)
    found = value_and_gradients(chunked_float8_cross_entropy)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
    # A number is off by at most 1/16 in e4m3 and 1/8 in e5m2, by a root mean square of 0.03 and
    # 0.06, and a sum of many by no more than each.
    assert 0 < errors[0] < 1e-3
    assert all(0.01 < error < 0.08 for error in errors[1:])


def test_a_head_of_zeros_has_its_gradient() -> None:
    value, grad_x, grad_weight = value_and_gradients(chunked_float8_cross_entropy, zero_head=True)
    exact = value_and_gradients(plain_cross_entropy, zero_head=True)
    torch.testing.assert_close(value, exact[0])
    assert torch.equal(grad_x, torch.zeros_like(grad_x))
    assert (grad_weight - exact[2]).norm() < 0.08 * exact[2].norm()


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_size_of_a_chunk_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None
) -> None:
    def computed(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", tokens * V)
        x, weight, targets = inputs()
        return loss_and_gradients(x, weight, targets[:, None], softcap, None, True, False, True)

    for found, expected in zip(computed(16), computed(N), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_without_float8_it_is_the_plain_loss(softcap: float | None) -> None:
    """So that what float8 changes is what the products change."""
    x, weight, targets = (t.double() if t.is_floating_point() else t for t in inputs())
    x.requires_grad_()
    weight.requires_grad_()
    logits = x @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.nn.functional.cross_entropy(logits, targets)
    expected.backward()
    detached = x.detach(), weight.detach(), targets[:, None]
    found = loss_and_gradients(*detached, softcap, None, True, False, False)
    for a, b in zip(found, (expected.detach(), x.grad, weight.grad), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def ahead(loss: CrossEntropy, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Two sequences, of which each token predicts three."""
    weights = torch.tensor([0.6, 0.3, 0.1], dtype=weight.dtype)
    return loss(x, weight, mtp_targets(targets.view(2, -1), 3), 2.0, weights)


def test_several_tokens_are_predicted_with_the_same_products() -> None:
    def computed(loss: CrossEntropy, dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, weight = (t.to(dtype).requires_grad_() for t in inputs()[:2])
        value = ahead(loss, x, weight, inputs()[2])
        return value.detach(), *torch.autograd.grad(value, (x, weight))

    plain = computed(plain_cross_entropy, torch.float64)
    for a, b in zip(computed(chunked_cross_entropy, torch.float64), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    found = computed(chunked_float8_cross_entropy, torch.float32)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, plain, strict=True)]
    assert 0 < errors[0] < 1e-3 and all(0.01 < error < 0.08 for error in errors[1:])


def test_validation_is_not_in_float8() -> None:
    x, weight, targets = inputs()
    weight.requires_grad_()
    with torch.no_grad():
        found = chunked_float8_cross_entropy(x, weight, targets)
    assert not found.requires_grad
    torch.testing.assert_close(found, plain_cross_entropy(x, weight.detach(), targets))


def test_a_run_says_that_it_rounds_and_learns_as_without(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def losses(name: str, *options: str) -> list[float]:
        folder = tmp_path / name
        main([*tiny, *options, "--out", str(folder)])
        return [r["train_loss"] for r in read_records(folder / METRICS) if "train_loss" in r]

    exact = losses("exact")
    assert "float8" not in capsys.readouterr().out
    rounded = losses("rounded", "--train.float8-head")
    assert "chunked loss, float8 head (rounded only: no faster here)" in capsys.readouterr().out
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.02)
    assert exact[0] - exact[-1] > 0.5  # far more than the rounding


def test_what_cannot_be_heeded_is_refused(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str) -> str:
        out = ["--out", str(tmp_path / "run")]
        line = refusal([*tiny, "--train.float8-head", *options, *out], capsys)
        assert not (tmp_path / "run").exists()
        return line

    assert refused("--train.loss", "plain") == (
        "train.float8_head is True, which has no effect with train.loss plain: leave it at False, "
        "or use --train.loss auto, --train.loss chunked or --train.loss fused"
    )
    assert refused("--model.width", "40").startswith(
        "model.width is 40, and train.float8_head multiplies 16 numbers at a time: use a "
        "multiple, for example --model.width 48"
    )
    assert refused("--train.precision", "float64") == (
        "train.float8_head multiplies in float8, and all else is to be float64: use "
        "--train.no-float8-head"
    )
    assert Config().train.float8_head is False


def test_devices_without_float8_units_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(QuinticError, match=r"A100 has compute capability 8\.0, below 8\.9: use"):
        require_float8(torch.device("cuda"), torch.bfloat16)
    with pytest.raises(QuinticError, match="mps is not NVIDIA's"):
        require_float8(torch.device("mps"), torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    require_float8(torch.device("cuda"), torch.bfloat16)
