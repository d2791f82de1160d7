"""The fused loss against the plain one: value, gradients, precision and memory."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quintic.model.head import GRADIENT_SCALE
from quintic.model.loss import (
    KERNEL_CHUNK_ELEMENTS,
    CrossEntropy,
    fused_cross_entropy,
    loss_and_gradients,
    plain_cross_entropy,
    torch_cross_entropy,
)
from quintic.model.multi_token import NO_TOKEN, mtp_targets
from tests.model.test_loss import Recorder, inputs

pytestmark = pytest.mark.device

N, D, V = 7, 12, 5001
"""A vocabulary of more than one of the kernel's blocks of 4,096, and no multiple of any."""


@pytest.fixture(params=[1, 3, 7, 100], ids=lambda n: f"{n}-tokens-a-chunk")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    tokens: int = request.param
    monkeypatch.setattr("quintic.model.loss.ALIGNMENT", 1)
    for kind in KERNEL_CHUNK_ELEMENTS:
        monkeypatch.setitem(KERNEL_CHUNK_ELEMENTS, kind, tokens * V + V // 2)
    return tokens


def value_and_gradients(
    loss: CrossEntropy, dtype: torch.dtype, device: torch.device, scale: float = 1.0, V: int = V
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, targets = (
        t.detach().to(device).requires_grad_(t.requires_grad) for t in inputs(dtype, N=N, D=D, V=V)
    )
    value = loss(x, weight, targets)
    (scale * value).backward()
    assert x.grad is not None
    assert weight.grad is not None
    return value.detach(), x.grad, weight.grad


@pytest.mark.parametrize("scale", [1.0, -3.7])
def test_fused_equals_plain_in_float64(device: torch.device, chunk: int, scale: float) -> None:
    found = value_and_gradients(fused_cross_entropy, torch.float64, device, scale)
    expected = value_and_gradients(plain_cross_entropy, torch.float64, device, scale)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [1, 51, 4096, V])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_is_as_exact_as_plain(
    device: torch.device, dtype: torch.dtype, vocabulary: int
) -> None:
    exact = value_and_gradients(plain_cross_entropy, torch.float64, device, 0.3, vocabulary)
    plain = value_and_gradients(plain_cross_entropy, dtype, device, 0.3, vocabulary)
    found = value_and_gradients(fused_cross_entropy, dtype, device, 0.3, vocabulary)
    for a, b, truth in zip(found, plain, exact, strict=True):
        assert a.dtype == b.dtype
        own, allowed = (a.double() - truth).norm(), 2 * (b.double() - truth).norm()
        # Both values can be right to the last bit of float32.
        assert own <= allowed + 2e-7 * truth.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_several_targets_are_as_exact_as_in_plain_pytorch(
    device: torch.device, dtype: torch.dtype, softcap: float | None
) -> None:
    def ahead(loss: CrossEntropy, x: Tensor, weight: Tensor, targets_N: Tensor) -> Tensor:
        weights = torch.tensor([0.6, 0.3, 0.1], dtype=weight.dtype, device=device)
        return loss(x, weight, mtp_targets(targets_N[None], 3), softcap, weights)

    plain, fused = (partial(ahead, loss) for loss in (plain_cross_entropy, fused_cross_entropy))
    exact = value_and_gradients(plain, torch.float64, device)
    reference = value_and_gradients(plain, dtype, device)
    found = value_and_gradients(fused, dtype, device)
    for a, b, truth in zip(found, reference, exact, strict=True):
        assert a.dtype == b.dtype
        own, allowed = (a.double() - truth).norm(), 2 * (b.double() - truth).norm()
        rounding = 1e-13 if dtype is torch.float64 else 2e-7
        assert own <= allowed + rounding * truth.norm()


@pytest.mark.parametrize("needs_gradient", ["x", "weight"])
def test_one_input_alone_may_need_a_gradient(device: torch.device, needs_gradient: str) -> None:
    def gradient(loss: CrossEntropy) -> Tensor:
        x, weight, targets = (t.detach().to(device) for t in inputs(N=N, V=51))
        needed = x if needs_gradient == "x" else weight
        needed.requires_grad_()
        loss(x, weight, targets).backward()
        assert needed.grad is not None
        return needed.grad

    torch.testing.assert_close(
        gradient(fused_cross_entropy), gradient(plain_cross_entropy), rtol=0, atol=1e-12
    )


def test_large_logits_stay_finite(device: torch.device) -> None:
    x, weight, targets = (t.detach().to(device) for t in inputs(torch.float32, N=N, V=V))
    x.requires_grad_()
    value = fused_cross_entropy(1e4 * x, weight, targets)
    value.backward()
    torch.testing.assert_close(value, plain_cross_entropy(1e4 * x, weight, targets))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def capped_cross_entropy(softcap: float, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """In plain PyTorch."""
    logits = F.linear(x, weight.to(x.dtype)).to(torch.promote_types(x.dtype, torch.float32))
    return F.cross_entropy(softcap * torch.tanh(logits / softcap), targets)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [2.0, 30.0])
def test_a_softcap_is_as_exact_as_in_plain_pytorch(
    device: torch.device, softcap: float, dtype: torch.dtype
) -> None:
    """From logits far below the cap to far beyond it."""
    reference = partial(capped_cross_entropy, softcap)
    fused = partial(fused_cross_entropy, softcap=softcap)
    exact = value_and_gradients(reference, torch.float64, device)
    plain = value_and_gradients(reference, dtype, device)
    found = value_and_gradients(fused, dtype, device)
    for a, b, truth in zip(found, plain, exact, strict=True):
        own, allowed = (a.double() - truth).norm(), 2 * (b.double() - truth).norm()
        rounding = 1e-14 if dtype is torch.float64 else 2e-7
        assert own <= allowed + rounding * truth.norm()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("weights", [None, [0.6, 0.3, 0.1]])
def test_the_kernel_is_plain_pytorch_row_by_row(
    device: torch.device, dtype: torch.dtype, softcap: float | None, weights: list[float] | None
) -> None:
    """With a divisor, and the gradient in the logits' memory or, as in float8, in its own."""
    if dtype is torch.float8_e5m2 and device.type == "cpu":
        pytest.skip("Triton's interpreter loses the carry where it rounds to float8")
    from quintic.kernels.cross_entropy import cross_entropy

    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(5, V, generator=random).to(device)
    targets = torch.randint(V, (5, len(weights or [1])), generator=random).to(device)
    weights_M = None if weights is None else torch.tensor(weights, device=device)
    if weights is not None:
        targets[3, 1:], targets[4, 2] = NO_TOKEN, NO_TOKEN
        targets[1, 2] = targets[1, 0]  # the same token twice
    before = logits.clone()

    def computed(function: Any) -> tuple[Tensor, Tensor]:
        rows = [
            function(*row, weights_M, softcap, dtype, GRADIENT_SCALE)
            for row in zip(logits.split(1), targets.split(1), strict=True)
        ]
        return torch.cat([losses.sum(1) for losses, _ in rows]), torch.cat(
            [g.float() for _, g in rows]
        )

    expected = computed(torch_cross_entropy)
    assert torch.equal(logits, before)
    found = computed(cross_entropy)
    assert torch.equal(logits, found[1] if dtype is torch.float32 else before)
    for a, b in zip(found, expected, strict=True):
        # Where the last digits differ, a gradient may round to the next number.
        rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-7}.get(dtype, 1e-2)
        assert (a - b).norm() <= rounding * b.norm()
    losses, grad = cross_entropy(before, targets, weights_M, softcap, dtype, GRADIENT_SCALE)
    assert grad is not None
    assert torch.equal(grad.float(), found[1])
    torch.testing.assert_close(losses.sum(1), found[0])


class FloatRecorder(Recorder):
    """Elements of the largest float32 tensor that any operation returned."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        if isinstance(out, Tensor) and out.dtype is torch.float32:
            self.largest = max(self.largest, out.numel())
        return out


def test_no_logits_exist_in_float32(device: torch.device) -> None:
    """Looked for inside the operator, which a recorder sees as one."""
    x, weight, targets = (t.detach().to(device) for t in inputs(torch.bfloat16, N=64, D=3, V=512))
    with FloatRecorder() as recorder:
        loss_and_gradients(x, weight, targets[:, None], None, None, True, True, False)
    assert recorder.largest == weight.numel()
    with FloatRecorder() as recorder:  # it sees what it should
        plain_cross_entropy(x, weight, targets)
    assert recorder.largest == 64 * 512


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_none_is_computed(device: torch.device, chunk: int, guard: Any) -> None:
    x, weight, targets = (t.to(device) for t in inputs(N=N, D=D, V=V))
    with guard():
        value = fused_cross_entropy(x, weight, targets)
        losses = fused_cross_entropy(x, weight, targets, reduction="none")
        with Recorder() as recorder:
            loss_and_gradients(
                x.detach(), weight.detach(), targets[:, None], None, None, False, True, False
            )
    assert not value.requires_grad
    torch.testing.assert_close(value, plain_cross_entropy(x, weight, targets).detach())
    expected = plain_cross_entropy(x, weight, targets, reduction="none").detach()
    torch.testing.assert_close(losses, expected)
    # One product a chunk; inference mode records the function before it is taken apart.
    products = [name for name in recorder.names if name.split(".")[1] in ("mm", "matmul")]
    assert len(products) == -(-N // chunk)


def test_torch_compile_takes_it_whole_and_changes_nothing(device: torch.device) -> None:
    compiled = torch.compile(fused_cross_entropy, backend="aot_eager", fullgraph=True)
    found = value_and_gradients(compiled, torch.bfloat16, device, V=51)
    expected = value_and_gradients(fused_cross_entropy, torch.bfloat16, device, V=51)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_on_a_gpu_gpt2s_head_takes_a_third_of_the_plain_memory(gpu: torch.device) -> None:
    """The logits in bfloat16, once; plain keeps them in float32 with their gradient besides."""
    tokens, width, vocabulary = 8192, 768, 50_304

    def peak_bytes(loss: CrossEntropy) -> int:
        x = torch.randn(tokens, width, device=gpu, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(vocabulary, width, device=gpu, requires_grad=True)
        targets = torch.randint(vocabulary, (tokens,), device=gpu)
        torch.cuda.reset_peak_memory_stats(gpu)
        held = torch.cuda.memory_allocated(gpu)
        loss(x, weight, targets).backward()
        return torch.cuda.max_memory_allocated(gpu) - held

    assert peak_bytes(fused_cross_entropy) < peak_bytes(plain_cross_entropy) / 3
