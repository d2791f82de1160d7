"""Matrices in eight bits: what they compute exactly, how near that is, and alone as in a batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.errors import QuinticError
from quintic.generate import generate_rows
from quintic.model import int8
from quintic.model.build import build_model
from quintic.model.decoding import DecodingParts
from quintic.model.int8 import Int8Matrix, int8_parts, runs_int8
from quintic.sampling import Sampling
from tests.model.test_decoding import MODELS, drawn, logits, own_parts

on_bytes = pytest.mark.skipif(not runs_int8(), reason="needs AVX-512 VNNI")
RANDOM = torch.Generator().manual_seed(0)
WEIGHT_ND, BIAS_N = torch.randn(70, 50, generator=RANDOM), torch.randn(70, generator=RANDOM)
X_RD = torch.randn(5, 50, generator=RANDOM) * torch.tensor([1.0, 1e-3, 30.0, 0.0, 1.0])[:, None]
WEIGHT_ND[3] = 0


def rounded(x: Tensor, steps: int) -> Tensor:
    """Rows rounded to so many steps between zero and their largest entry, in float64."""
    step = x.double().abs().amax(-1, keepdim=True).clamp_min(1e-30) / steps
    return (x.double() / step).round() * step


@on_bytes
@pytest.mark.parametrize("bias_N", [None, BIAS_N])
@pytest.mark.parametrize(("twice", "steps"), [(False, 127), (True, 127 * 254)])
def test_a_product_is_that_of_the_rounded_numbers(
    twice: bool, steps: int, bias_N: Tensor | None
) -> None:
    expected = rounded(X_RD, steps) @ rounded(WEIGHT_ND, 127).T + (0 if bias_N is None else bias_N)
    found = Int8Matrix(WEIGHT_ND, bias_N, twice=twice).product(X_RD)
    assert found.dtype == torch.float32
    # A number in the middle between two steps is rounded to either.
    bound = X_RD.abs().amax(-1, keepdim=True) / steps * WEIGHT_ND.abs().amax() + 1e-6
    assert ((found - expected).abs() <= bound).all()
    torch.testing.assert_close(found[2:].double(), expected[2:], rtol=1e-5, atol=1e-4)


@on_bytes
@pytest.mark.parametrize("twice", [False, True])
def test_a_token_is_the_same_bits_alone_and_beside_others(
    twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "CHUNK_BYTES", 20 * 50)  # pieces of 20 rows and one of 10
    matrix = Int8Matrix(WEIGHT_ND, BIAS_N, twice=twice)
    together = matrix.product(X_RD)
    for row, alone in enumerate(X_RD):
        assert torch.equal(matrix.product(alone), together[row])
        assert torch.equal(matrix.product(alone[None, None]), together[row][None, None])


@on_bytes
@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_logits_are_near_those_of_the_weights(changes: dict[str, Any]) -> None:
    model = drawn(**changes)
    exact = logits(model)
    with int8_parts(model).used():
        found = logits(model)
    assert own_parts(model) == []
    error = (found - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03


def texts(prompts: list[list[int]], parts: DecodingParts) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    sampling = Sampling(temperature=0.5)
    model = MODEL
    for row, token, _ in generate_rows(
        model, prompts, tokens=40, sampling=sampling, seeds=[p[0] for p in prompts], parts=parts
    ):
        found[row].append(token)
    return found


MODEL = drawn()


@on_bytes
def test_a_text_is_the_same_alone_and_beside_others_past_the_context() -> None:
    prompts, parts = [[1], [2, 3], [4, 5, 6], [7], [8] * 40], int8_parts(MODEL)
    together = texts(prompts, parts)
    assert [texts([prompt], parts)[0] for prompt in prompts] == together
    assert len({token for text in together for token in text}) > 10


def test_what_it_is_not_made_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(layers=1, width=24, heads=2, context=8, vocab_size=40)
    with pytest.raises(QuinticError, match="is for a CPU, and the model is on meta: add --device"):
        int8_parts(build_model(config).to("meta"))
    with pytest.raises(QuinticError, match="is for float32, and the model computes in float64"):
        int8_parts(build_model(config, compute_dtype=torch.float64))
    monkeypatch.setattr(int8, "runs_int8", lambda: False)
    with pytest.raises(QuinticError, match="needs a processor with AVX-512 VNNI: leave it out"):
        int8_parts(build_model(config))
