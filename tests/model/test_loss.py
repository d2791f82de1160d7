"""The chunked loss against the plain one: value, gradients, precision and memory."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quintic.model.loss import (
    CHUNK_ELEMENTS,
    CrossEntropy,
    chunked_cross_entropy,
    plain_cross_entropy,
)

N, D, V = 37, 12, 51

LOSSES = {"chunked": chunked_cross_entropy, "plain": plain_cross_entropy}
"""Those that need no kernel."""


@pytest.fixture(params=[1, 5, 36, 37, 100], ids=lambda n: f"{n}-tokens-a-chunk")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a chunk; most do not divide the 37."""
    tokens: int = request.param
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", tokens * V + V // 2)
    return tokens


def inputs(
    dtype: torch.dtype = torch.float64, *, N: int = N, D: int = D, V: int = V
) -> tuple[Tensor, Tensor, Tensor]:
    """x in the compute precision, the weight in the masters' (float32, or float64)."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=random, dtype=torch.float64)
    weight = torch.randn(V, D, generator=random, dtype=torch.float64)
    targets = torch.randint(V, (N,), generator=random)
    master = torch.float64 if dtype is torch.float64 else torch.float32
    return x.to(dtype).requires_grad_(), weight.to(master).requires_grad_(), targets


softcaps = pytest.mark.parametrize("softcap", [None, 2.0], ids=["uncapped", "softcap"])
"""2 is small enough to bend the logits here, whose standard deviation is 3.5."""


def value_and_gradients(
    loss: CrossEntropy, dtype: torch.dtype, scale: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, targets = inputs(dtype)
    value = loss(x, weight, targets, softcap)
    (scale * value).backward()
    assert x.grad is not None
    assert weight.grad is not None
    return value.detach(), x.grad, weight.grad


def test_the_softcap_is_that_of_the_definition_token_by_token() -> None:
    x, weight, targets = (tensor.detach() for tensor in inputs())
    losses = []
    for row, target in zip(x.tolist(), targets.tolist(), strict=True):
        z = [sum(a * b for a, b in zip(row, w, strict=True)) for w in weight.tolist()]
        capped = [2.0 * math.tanh(v / 2.0) for v in z]
        losses.append(math.log(sum(math.exp(v) for v in capped)) - capped[target])
    for loss in LOSSES.values():
        value = loss(x, weight, targets, 2.0).item()
        assert value == pytest.approx(sum(losses) / N, rel=1e-13)
        assert value != pytest.approx(loss(x, weight, targets).item(), rel=0.1)


@softcaps
@pytest.mark.parametrize("scale", [1.0, 0.125, -3.7])
def test_chunked_equals_plain_in_float64(chunk: int, scale: float, softcap: float | None) -> None:
    found = value_and_gradients(chunked_cross_entropy, torch.float64, scale, softcap)
    expected = value_and_gradients(plain_cross_entropy, torch.float64, scale, softcap)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@softcaps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_is_as_exact_as_plain(
    chunk: int, dtype: torch.dtype, softcap: float | None
) -> None:
    exact = value_and_gradients(plain_cross_entropy, torch.float64, 0.3, softcap)
    plain = value_and_gradients(plain_cross_entropy, dtype, 0.3, softcap)
    found = value_and_gradients(chunked_cross_entropy, dtype, 0.3, softcap)
    for a, b, truth in zip(found, plain, exact, strict=True):
        assert a.dtype == b.dtype
        own, allowed = (a.double() - truth).norm(), 2 * (b.double() - truth).norm()
        # Both values can be right to the last bit of float32.
        assert own <= allowed + 2e-7 * truth.norm()


@softcaps
def test_chunked_passes_gradcheck(monkeypatch: pytest.MonkeyPatch, softcap: float | None) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 3 * 5)
    x, weight, targets = inputs(N=7, D=3, V=5)
    assert torch.autograd.gradcheck(
        lambda x, w: chunked_cross_entropy(x, w, targets, softcap),
        (x, weight),
        raise_exception=True,
    )


def test_chunked_is_computed_in_float32_at_least() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        assert chunked_cross_entropy(*inputs(dtype)).dtype == torch.float32
        assert plain_cross_entropy(*inputs(dtype)).dtype == torch.float32
    assert chunked_cross_entropy(*inputs()).dtype == torch.float64


@pytest.mark.parametrize("needs_gradient", ["x", "weight"])
def test_one_input_alone_may_need_a_gradient(chunk: int, needs_gradient: str) -> None:
    def gradient(loss: CrossEntropy) -> Tensor:
        x, weight, targets = inputs()
        x.requires_grad_(needs_gradient == "x")
        weight.requires_grad_(needs_gradient == "weight")
        loss(x, weight, targets).backward()
        grad = x.grad if needs_gradient == "x" else weight.grad
        assert grad is not None
        return grad

    torch.testing.assert_close(
        gradient(chunked_cross_entropy), gradient(plain_cross_entropy), rtol=0, atol=1e-12
    )


def test_large_logits_stay_finite() -> None:
    x, weight, targets = inputs(torch.float32)
    for loss in LOSSES.values():
        value = loss(1e4 * x, weight, targets)
        x.grad = None
        value.backward()
        assert value.isfinite()
        assert x.grad is not None
        assert x.grad.isfinite().all()


class Recorder(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned, and the operations' names."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
        return out


def test_chunked_never_holds_the_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 8 * V)
    largest = {}
    for name, loss in LOSSES.items():
        x, weight, targets = inputs(torch.float32)
        with Recorder() as recorder:
            loss(x, weight, targets).backward()
        largest[name] = recorder.largest
    assert largest["plain"] == N * V  # the recorder sees what it should
    assert largest["chunked"] == max(8 * V, V * D, N * D)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_none_is_computed(chunk: int, guard: Any) -> None:
    x, weight, targets = inputs()
    with guard(), Recorder() as recorder:
        value = chunked_cross_entropy(x, weight, targets)
    with guard():
        losses = chunked_cross_entropy(x, weight, targets, reduction="none")
    assert not value.requires_grad
    expected = torch.nn.functional.cross_entropy(x @ weight.T, targets, reduction="none").detach()
    torch.testing.assert_close(value, expected.mean())
    for found in (losses, plain_cross_entropy(x, weight, targets, reduction="none")):
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-12)
    # One product a chunk; inference mode records the function before it is taken apart.
    products = [name for name in recorder.names if name.split(".")[1] in ("mm", "matmul")]
    assert len(products) == -(-N // chunk)
    assert not any("scatter" in name for name in recorder.names)
