"""Multi-token prediction: which tokens, with which weights, by every loss that can do it."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.model.build import build_model
from quintic.model.loss import (
    CHUNK_ELEMENTS,
    CrossEntropy,
    chunked_cross_entropy,
    plain_cross_entropy,
)
from quintic.model.multi_token import NO_TOKEN, mtp_targets
from quintic.optim.schedule import token_weights_at

B, T, D, V = 3, 7, 12, 51
LOSSES = (plain_cross_entropy, chunked_cross_entropy)
"""`fused` has its tests where the kernels have theirs."""
WEIGHTS = [0.6, 0.3, 0.1]
softcaps = pytest.mark.parametrize("softcap", [None, 2.0], ids=["uncapped", "softcap"])


@pytest.fixture(params=[1, 5, 21, 100], ids=lambda n: f"{n}-tokens-a-chunk")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", request.param * V + V // 2)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, the head and the next tokens [B, T]."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(B * T, D, generator=random, dtype=torch.float64)
    weight = torch.randn(V, D, generator=random, dtype=torch.float64)
    targets = torch.randint(V, (B, T), generator=random)
    master = torch.float64 if dtype is torch.float64 else torch.float32
    return x.to(dtype).requires_grad_(), weight.to(master).requires_grad_(), targets


def value_and_gradients(
    loss: CrossEntropy, dtype: torch.dtype, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    x, head, targets_BT = inputs(dtype)
    weights = torch.tensor(WEIGHTS, dtype=head.dtype)
    value = loss(x, head, mtp_targets(targets_BT, 3), softcap, weights)
    (0.3 * value).backward()
    assert x.grad is not None
    assert head.grad is not None
    return value.detach(), x.grad, head.grad


def test_the_targets_of_a_position_are_those_that_follow_until_the_sequence_ends() -> None:
    targets_BT = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = mtp_targets(targets_BT, 3).tolist()
    end = NO_TOKEN
    assert found == [
        *([1, 2, 3], [2, 3, 4], [3, 4, end], [4, end, end]),
        *([5, 6, 7], [6, 7, 8], [7, 8, end], [8, end, end]),
    ]


@softcaps
def test_the_loss_is_that_of_the_definition_token_by_token(softcap: float | None) -> None:
    x, head, targets_BT = (tensor.detach() for tensor in inputs())
    total = 0.0
    for b in range(B):
        for t in range(T):
            z = (head @ x[b * T + t]).tolist()
            if softcap is not None:
                z = [softcap * math.tanh(v / softcap) for v in z]
            log_sum = math.log(sum(math.exp(v) for v in z))
            for ahead, weight in enumerate(WEIGHTS):
                if t + ahead < T:
                    total += weight * (log_sum - z[int(targets_BT[b, t + ahead])])
    targets_NM, weights = mtp_targets(targets_BT, 3), torch.tensor(WEIGHTS, dtype=x.dtype)
    for loss in LOSSES:
        found = loss(x, head, targets_NM, softcap, weights)
        assert found.item() == pytest.approx(total / (B * T), rel=1e-13)


@softcaps
@pytest.mark.usefixtures("chunk")
def test_chunked_equals_plain_in_float64(softcap: float | None) -> None:
    found = value_and_gradients(chunked_cross_entropy, torch.float64, softcap)
    expected = value_and_gradients(plain_cross_entropy, torch.float64, softcap)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@softcaps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("chunk")
def test_chunked_errs_at_most_twice_as_much_as_plain(
    dtype: torch.dtype, softcap: float | None
) -> None:
    exact = value_and_gradients(plain_cross_entropy, torch.float64, softcap)
    plain = value_and_gradients(plain_cross_entropy, dtype, softcap)
    found = value_and_gradients(chunked_cross_entropy, dtype, softcap)
    for a, b, truth in zip(found, plain, exact, strict=True):
        own, allowed = (a.double() - truth).norm(), 2 * (b.double() - truth).norm()
        assert own <= allowed + 2e-7 * truth.norm()


@pytest.mark.parametrize("loss", LOSSES)
def test_with_all_weight_on_the_next_token_it_is_the_loss_of_the_next_token(
    loss: CrossEntropy,
) -> None:
    x, head, targets_BT = inputs()
    weights = torch.tensor([1.0, 0.0], dtype=x.dtype)
    alone = loss(x, head, targets_BT.flatten())
    ahead = loss(x, head, mtp_targets(targets_BT, 2), weights_M=weights)
    assert ahead.item() == pytest.approx(alone.item(), rel=1e-14)
    for a, b in zip(
        torch.autograd.grad(ahead, (x, head)), torch.autograd.grad(alone, (x, head)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_a_model_predicts_further_tokens_in_training_alone() -> None:
    config = ModelConfig(layers=2, width=16, heads=2, context=T, vocab_size=V)
    options = {"compute_dtype": torch.float64, "seed": 1}
    model = build_model(config, **options, mtp_tokens=3)  # type: ignore[arg-type]
    next_alone = build_model(config, **options)  # type: ignore[arg-type]
    ids_BT = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(0))
    batch = ids_BT[:, :-1], ids_BT[:, 1:]
    model.set_token_weights(WEIGHTS)
    x_ND = model.features(batch[0]).flatten(0, 1)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    expected = plain_cross_entropy(
        x_ND, model.head_weight, mtp_targets(batch[1], 3), weights_M=weights
    )
    torch.testing.assert_close(model.loss(*batch), expected, rtol=1e-13, atol=0)
    with torch.no_grad():
        assert model.loss(*batch) == next_alone.loss(*batch)
    model.set_token_weights([1.0, 0.0, 0.0])
    torch.testing.assert_close(model.loss(*batch), next_alone.loss(*batch), rtol=1e-14, atol=0)
    assert "token_weights" not in model.state_dict()


def test_three_tokens_become_two_and_one_as_in_the_record() -> None:
    def shares(*weights: float) -> tuple[float, ...]:
        return tuple(weight / sum(weights) for weight in weights)

    found = {s: token_weights_at(s, steps=300, tokens=3) for s in (0, 50, 100, 150, 199, 200, 300)}
    assert found[0] == pytest.approx(shares(1, 0.5, 0.25))
    assert found[50] == pytest.approx(shares(1, 0.5, 0.125))
    assert found[100] == pytest.approx(shares(1, 0.5, 0))
    assert found[150] == pytest.approx(shares(1, 0.25, 0))
    assert found[199] == pytest.approx(shares(1, 0.005, 0))
    assert found[200] == found[300] == (1.0, 0.0, 0.0)
    assert token_weights_at(7, steps=300, tokens=1) == (1.0,)
    # The share of the next token never falls.
    first = [token_weights_at(step, steps=40, tokens=4)[0] for step in range(41)]
    assert all(a <= b + 1e-15 for a, b in pairwise(first))
